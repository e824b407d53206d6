"""Resizing: every interpolation is a weighted sum of a few taps along each axis, so any derivative exists."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from search.onnx_import.ops.table import Call, aligned, normalized_axes, op

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class _Axis:
    """One axis to resize: lengths before and after, the scale between them, and its part of the region."""

    before: int
    after: int
    scale: float
    region: tuple[float, float]

    @property
    def is_identity(self) -> bool:
        return self.before == self.after and math.isclose(self.scale, 1.0) and self.region == (0.0, 1.0)


def _source_coordinates(axis: _Axis, mode: str) -> Floats:
    """Where in the input each output position lies, in input positions."""
    x = np.arange(axis.after, dtype=np.float64)
    exact = axis.scale * axis.before
    last = axis.before - 1
    match mode:
        case "asymmetric":
            return np.divide(x, axis.scale)
        case "half_pixel":
            return (x + 0.5) / axis.scale - 0.5
        case "tf_half_pixel_for_nn":
            return (x + 0.5) / axis.scale
        case "pytorch_half_pixel":
            # With one output position torch reads the first element.
            return (x + 0.5) / axis.scale - 0.5 if exact > 1 else np.full(axis.after, -0.5)
        case "half_pixel_symmetric":
            return axis.before / 2 * (1 - axis.after / exact) + (x + 0.5) / axis.scale - 0.5
        case "align_corners":
            return x * last / (exact - 1) if exact != 1 else np.zeros(axis.after)
        case "tf_crop_and_resize":
            start, end = axis.region
            inside = x * last / (exact - 1) if exact != 1 else np.full(axis.after, last / 2)
            return start * last + (end - start) * inside
    raise ValueError(f"coordinate mode {mode!r}")


def _nearest(coordinates: Floats, rounding: str) -> Floats:
    match rounding:
        case "round_prefer_floor":
            return np.ceil(coordinates - 0.5)
        case "round_prefer_ceil":
            return np.floor(coordinates + 0.5)
        case "floor":
            return np.floor(coordinates)
        case "ceil":
            return np.ceil(coordinates)
    raise ValueError(f"nearest mode {rounding!r}")


def _triangle(distance: Floats) -> Floats:
    weights: Floats = np.maximum(1 - np.abs(distance), 0)
    return weights


def _cubic(a: float) -> Callable[[Floats], Floats]:
    """Keys' cubic convolution kernel with parameter `a`."""

    def kernel(distance: Floats) -> Floats:
        d = np.abs(distance)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        weights: Floats = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
        return weights

    return kernel


def _taps(
    coordinates: Floats,
    axis: _Axis,
    kernel: Callable[[Floats], Floats],
    support: int,
    antialias: bool,
    exclude_outside: bool,
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], Floats]:
    """Input positions (taps, out) and their weights; positions outside read the edge or, excluded, weigh nothing."""
    shrink = min(axis.scale, 1.0) if antialias else 1.0
    reach = math.ceil(support / shrink)
    first = np.floor(coordinates).astype(np.int64)
    positions = first[None, :] + np.arange(-reach + 1, reach + 1)[:, None]
    weights = kernel((positions - coordinates[None, :]) * shrink)
    if exclude_outside:
        weights = np.where((positions < 0) | (positions >= axis.before), 0.0, weights)
    if antialias or exclude_outside:
        total = weights.sum(0, keepdims=True)
        weights = weights / np.where(total == 0, 1.0, total)
    return np.clip(positions, 0, axis.before - 1), weights


def _resize(x: Tensor, axes: dict[int, _Axis], call: Call, mode: str, coordinate_mode: str, rounding: str) -> Tensor:
    original = x.dtype
    outside: Tensor | None = None
    for index, axis in axes.items():
        if axis.is_identity:
            continue
        coordinates = _source_coordinates(axis, coordinate_mode)
        if coordinate_mode == "tf_crop_and_resize":
            out = torch.from_numpy((coordinates < 0) | (coordinates > axis.before - 1)).to(x.device)
            shaped = out.reshape([-1 if d == index else 1 for d in range(x.ndim)])
            outside = shaped if outside is None else outside | shaped
        if mode == "nearest":
            places = np.clip(_nearest(coordinates, rounding), 0, axis.before - 1).astype(np.int64)
            x = x.index_select(index, torch.from_numpy(places).to(x.device))
            continue
        kernel, support = (_triangle, 1) if mode == "linear" else (_cubic(call.attribute("cubic_coeff_a", -0.75)), 2)
        positions, weights = _taps(
            coordinates,
            axis,
            kernel,
            support,
            bool(call.attribute("antialias", 0)),
            bool(call.attribute("exclude_outside", 0)),
        )
        x = x if x.is_floating_point() else x.to(call.dtype)
        shape = [-1 if d == index else 1 for d in range(x.ndim)]
        total: Tensor | None = None
        for places, weight in zip(positions, weights, strict=True):
            if not weight.any():
                continue
            factor = torch.from_numpy(weight).to(x).reshape(shape)
            term = x.index_select(index, torch.from_numpy(places).to(x.device)) * factor
            total = term if total is None else total + term
        assert total is not None
        x = total
    if outside is not None:
        x = torch.where(outside, torch.full((), float(call.attribute("extrapolation_value", 0.0))).to(x), x)
    if not original.is_floating_point and x.is_floating_point():
        x = torch.round(x)
    return x.to(original)


def _axes_of(
    x: Tensor, call: Call, scales: list[float] | None, sizes: list[int] | None, region: list[float]
) -> dict[int, _Axis]:
    axes = normalized_axes(call.attribute("axes", range(x.ndim)), x.ndim)
    lengths = [x.shape[axis] for axis in axes]
    if sizes is not None:
        scales = [size / length for size, length in zip(sizes, lengths, strict=True)]
        policy = call.attribute("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            one = min(scales) if policy == "not_larger" else max(scales)
            scales = [one] * len(axes)
            sizes = [math.floor(one * length + 0.5) for length in lengths]
    elif scales is not None:
        sizes = [math.floor(scale * length) for scale, length in zip(scales, lengths, strict=True)]
    assert scales is not None
    assert sizes is not None
    regions = [(region[i], region[i + len(axes)]) if region else (0.0, 1.0) for i in range(len(axes))]
    return {
        axis: _Axis(length, size, scale, part)
        for axis, length, size, scale, part in zip(axes, lengths, sizes, scales, regions, strict=True)
    }


def _floats(value: Tensor | None) -> list[float]:
    return [] if value is None else [float(item) for item in value.reshape(-1).tolist()]


@op("Resize")
def resize(call: Call) -> Tensor:
    x = call[0]
    mode = call.attribute("mode", "nearest")
    if call.opset < 11:
        return _resize(x, _axes_of(x, call, _floats(call[1]), None, []), call, mode, "asymmetric", "floor")
    coordinate_mode = call.attribute("coordinate_transformation_mode", "half_pixel")
    region = _floats(call.optional(1)) if coordinate_mode == "tf_crop_and_resize" else []
    scales, sizes = _floats(call.optional(2)), call.ints(3)
    axes = _axes_of(x, call, scales or None, None if scales else sizes, region)
    return _resize(x, axes, call, mode, coordinate_mode, call.attribute("nearest_mode", "round_prefer_floor"))


@op("Upsample")
def upsample(call: Call) -> Tensor:
    x = call[0]
    scales = _floats(call.optional(1)) or [float(scale) for scale in call.attribute("scales")]
    mode = call.attribute("mode", "nearest")
    axes = _axes_of(x, call, scales, None, [])
    return _resize(x, axes, call, "linear" if mode == "bilinear" else mode, "asymmetric", "floor")


_GRID_MODES = {"linear": "bilinear", "bilinear": "bilinear", "cubic": "bicubic", "bicubic": "bicubic"}


@op("GridSample")
def grid_sample(call: Call) -> Tensor:
    x, grid = aligned(call[0], call[1])
    return F.grid_sample(
        x,
        grid,
        mode=_GRID_MODES.get(call.attribute("mode", "linear"), "nearest"),
        padding_mode=call.attribute("padding_mode", "zeros"),
        align_corners=bool(call.attribute("align_corners", 0)),
    )


@op("AffineGrid")
def affine_grid(call: Call) -> Tensor:
    return F.affine_grid(call[0], call.ints(1) or [], bool(call.attribute("align_corners", 0)))
