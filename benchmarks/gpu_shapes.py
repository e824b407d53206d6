"""Random shapes and layers that the exactness cases of the GPU benchmark draw, and what a case is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.gpu_bench import Bench
from kernels import recipes
from kernels.backends.base import OpFailed
from kernels.backends.cuda_device import CudaDevice
from kernels.cuda.capability import nearest_listed
from kernels.cuda.epilogue import Output
from kernels.cuda.launch import Launch, launches
from kernels.cuda.packing import GROUP_SIZES
from kernels.cuda.source import Defines, KernelSource
from kernels.op_shape import Conv2dShape, LinearShape, OpShape
from kernels.precision import Precision
from kernels.profiles.cuda import cuda_profile
from kernels.random_layer import RandomLayer, random_layer
from kernels.recipe import Recipe

Kernels = dict[str, int]
"""Launches by kernel and tile."""
Wanted = tuple[KernelSource, str, Defines]
"""A kernel in one configuration: source, tile, macros beside the tile's."""


@dataclass(frozen=True)
class Case:
    """`attempt` runs one shape, by its seed: it counts its kernel and raises what is wrong. `wants` is the kernel that
    will be, so that those of all shapes are compiled together. `share` is its part of a section's time."""

    attempt: Callable[[int, Kernels], None]
    wants: Callable[[int], Wanted]
    shapes: int
    share: float


@dataclass(frozen=True)
class Drawn:
    """A shape in a precision, and the generator that goes on to draw what else there is."""

    op: OpShape
    precision: Precision
    recipe: Recipe
    seed: int
    rng: np.random.Generator

    def layer(self) -> RandomLayer:
        return random_layer(self.op, self.precision, self.recipe, self.seed)


def draw(device: CudaDevice, kind: str, precision: str, seed: int) -> Drawn:
    """A shape that divides nothing; weight-only ones in groups of any size there is."""
    rng = np.random.default_rng([seed, *f"{kind} {precision}".encode()])
    op = random_op(kind, rng)
    if precision == "w4a16":
        group = int(rng.choice(GROUP_SIZES))
        return Drawn(op, Precision(f"w4a16-g{group}"), recipes.linear_groups_float(group), seed, rng)
    profile = cuda_profile("check", device.identity, nearest_listed(device.arch) or device.arch)
    named = Precision(precision)
    return Drawn(op, named, profile.recipe(op.kind, named), seed, rng)


def draw_launch(bench: Bench, drawn: Drawn, output: Output, most: int | None = None) -> Launch:
    """One of the launches that can run what was drawn, of the best guesses if not of all."""
    device = bench.device
    found = launches(drawn.op, drawn.precision, device.arch, device.identity.cores, output)
    found = [each for each in found if f"{each.source.name} {each.tile}" not in bench.avoid][:most]
    if not found:
        raise OpFailed(f"{drawn.op.signature} in {drawn.precision}: every kernel that could run it is avoided")
    return found[int(drawn.rng.integers(len(found)))]


def count(kernels: Kernels, variant: str) -> str:
    """The kernel and tile of a variant, counted."""
    kernel = variant.split(" /")[0]
    kernels[kernel] = kernels.get(kernel, 0) + 1
    return kernel


def random_op(kind: str, rng: np.random.Generator) -> OpShape:
    """A shape that divides nothing in particular; one in four is a multiple of everything."""

    def draw(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    if kind == "linear":
        if rng.random() < 0.25:
            return LinearShape(16 * draw(1, 16), 128 * draw(1, 8), 64 * draw(1, 8), bool(draw(0, 1)))
        return LinearShape(draw(1, 300), draw(1, 1200), draw(1, 400), bool(draw(0, 1)))
    while True:
        groups = draw(1, 4) if rng.random() < 0.3 else 1
        channels, out = groups * draw(1, 48), groups * draw(1, 64)
        if kind == "depthwise":
            groups = channels = draw(2, 96)
            out = groups * (2 if rng.random() < 0.2 else 1)
        op = Conv2dShape(
            draw(1, 3), channels, draw(1, 14), draw(1, 14), out, (draw(1, 5), draw(1, 5)), (draw(1, 3), draw(1, 3)),
            (draw(0, 3), draw(0, 3), draw(0, 3), draw(0, 3)), (draw(1, 2), draw(1, 2)), groups, bool(draw(0, 1)),
        )  # fmt: skip
        if min(op.out_size) >= 1:
            return op
