"""Exactness of what stands behind and between the products: epilogues of every form, and changes of number format."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_bench import Bench
from benchmarks.gpu_shapes import Case, Drawn, Kernels, Wanted, count, draw, draw_launch
from kernels import reference
from kernels.backends.cuda_contender import poisoned, upload, work_of
from kernels.backends.cuda_device import CudaDevice, Geometry, Work, WrongResult
from kernels.backends.cuda_kernels import OUTPUT_TYPES, BoundLaunch, input_codes, output_rows, pack, weight_codes
from kernels.cuda.epilogue import EpilogueArguments, Output
from kernels.cuda.int8 import DEQUANTIZE, QUANTIZE, REQUANTIZE
from kernels.cuda.launch import Launch
from kernels.cuda.random_epilogue import DTYPES, EpilogueCase, from_stored, random_epilogue, stored
from kernels.cuda.signature import signature_of
from kernels.cuda.source import KernelSource
from kernels.op_shape import Conv2dShape, LinearShape
from kernels.random_layer import RandomLayer
from kernels.recipe import Granularity, Numerics

BOUNDARIES = ("quantize", "dequantize", "requantize")
EPILOGUE_SHAPES, BOUNDARY_SHAPES = 100, 200
TILES = 3
"""Configurations tried of a kernel in each form of its epilogue; all of them are in the cases without."""
FLOAT_SUMS = 2e-3
"""Largest error, relative to the largest output, where sums are in float: half precision rounds by 2^-11."""
_BFLOAT16_BITS = 8  # times as coarse as half precision


def epilogues(bench: Bench, kind: str, precision: str) -> Case:
    """A layer's sums through an epilogue of chance; sums in float may be off by `FLOAT_SUMS`."""
    outputs = [each for each in Output if precision != "w4a16" or not (each.is_code or each is Output.S32)]

    def chosen(seed: int) -> tuple[Drawn, Output, Launch]:
        drawn = draw(bench.device, kind, precision, seed)
        output = outputs[int(drawn.rng.integers(len(outputs)))]
        return drawn, output, draw_launch(bench, drawn, output, TILES)

    def wants(seed: int) -> Wanted:
        launch = chosen(seed)[2]
        return launch.source, launch.tile, launch.defines

    def attempt(seed: int, kernels: Kernels) -> None:
        drawn, output, launch = chosen(seed)
        layer, rng = drawn.layer(), drawn.rng
        rows, columns = output_rows(layer.op)
        packed, ld_residual = pack(launch, layer), columns + int(rng.integers(3))
        has_ratios = packed.channel_scale is not None  # scales of groups are the kernel's own business
        if has_ratios:
            summed = _grouped_sums(layer) / packed.channel_scale
            case = random_epilogue(rng, output, rows, columns, 1.0, ld_residual)
            case = replace(case, scale=packed.channel_scale.astype(np.float32), bias=None)
            expected = case.expected_of_floats(summed)
        else:
            exact = exact_sums(layer)
            case = random_epilogue(rng, output, rows, columns, max(1.0, float(exact.std())), ld_residual)
            expected = case.expected(exact)
        kernel = count(kernels, launch.name)
        epilogue = _Uploaded(bench.device, case)
        bound = BoundLaunch(bench.device, launch, upload(bench.device, packed.data), epilogue, columns, work_of(layer))
        codes = input_codes(layer)
        flat = codes if launch.source.name.startswith("conv") else codes.reshape(-1, codes.shape[-1])
        out = poisoned(bench.device, (rows, columns), OUTPUT_TYPES[output])
        with bench.running(kernel):
            bound.enqueue(upload(bench.device, launch.pack_input(flat))[0], out)
            bench.device.synchronize()
            _compare(f"{layer.op.signature} to {output.name}", _numbers(out), expected, has_ratios)

    return Case(attempt, wants, EPILOGUE_SHAPES, share=1.0)


def boundary(bench: Bench, name: str) -> Case:
    """A matrix from one number format to another, by one scale or one for every column."""
    source: KernelSource = {"quantize": QUANTIZE, "dequantize": DEQUANTIZE, "requantize": REQUANTIZE}[name]

    floats, codes = (Output.F32, Output.F16, Output.BF16), (Output.S8, Output.U8)
    taken = {"quantize": floats, "dequantize": codes, "requantize": (Output.S32, *codes)}[name]
    left = {"quantize": codes, "dequantize": floats, "requantize": (*floats, *codes)}[name]

    def formats(seed: int) -> tuple[Output, Output]:
        every = [(before, after) for before in taken for after in left]
        return every[seed % len(every)]

    def wants(seed: int) -> Wanted:
        before, after = formats(seed)
        return source, "default", {"INPUT": int(before), "OUTPUT": int(after)}

    def attempt(seed: int, kernels: Kernels) -> None:
        rng = np.random.default_rng([seed, *name.encode()])
        rows, columns = int(rng.integers(1, 300)), int(rng.integers(1, 500))
        before, after = formats(seed)
        per_channel = int(rng.integers(2))
        channels = columns if per_channel else 1
        scale = np.where(rng.integers(2, size=channels), 1, rng.uniform(0.1, 2, channels)).astype(np.float32)
        zero = rng.integers(-9, 10, channels).astype(np.int32)
        if before in floats:
            values = (rng.standard_normal((rows, columns)) * 60).astype(np.float32)
            values.ravel()[::7] = np.rint(values.ravel()[::7]) + 0.5  # ties at scale 1
            x = stored(values, before)
        else:
            low, high = {Output.S8: (-128, 128), Output.U8: (0, 256)}.get(before, (-(1 << 20), 1 << 20))
            x = rng.integers(low, high, (rows, columns)).astype(DTYPES[before])
        device, held = bench.device, []

        def address(array: Any, what: str) -> int:
            held.append(upload(device, array)[0])
            return int(held[-1].data_ptr())

        out = poisoned(device, (rows, columns), OUTPUT_TYPES[after])
        shape = {"rows": rows, "columns": columns}
        scales = {"scale": address(scale, "scale"), "zero_point": address(zero, "zero"), "per_channel": per_channel}
        numerics = Numerics(8, symmetric=False, signed=after is Output.S8, granularity=Granularity.TENSOR)
        if name == "quantize":
            expected = reference.quantize(from_stored(x), scale, zero, numerics)
            limits = {"low": numerics.code_min, "high": numerics.code_max}
            values = {"x": address(x, "x"), "codes": out.data_ptr(), "ld_x": columns, "ld_codes": columns, **limits}
            arguments = {**shape, **scales, **values}
        elif name == "dequantize":
            expected = stored(((x.astype(np.int64) - zero).astype(np.float32)) * scale, after)
            values = {"codes": address(x, "codes"), "y": out.data_ptr(), "ld_codes": columns, "ld_y": columns}
            arguments = {**shape, **scales, **values}
        else:
            case = random_epilogue(rng, after, rows, columns, max(1.0, float(x.std())))
            expected = case.expected(x.astype(np.int64) - 3)
            e = case.arguments(address, out.data_ptr(), columns)
            arguments = {**shape, "x": address(x, "x"), "e": e, "ld_x": columns, "input_zero_point": 3}
        defines = source.defines()
        threads, items = int(defines["BLOCK_THREADS"]), int(defines["ITEMS"])
        blocks = -(-rows * -(-columns // 4) // (threads * items))
        kernel = count(kernels, f"{source.name} {before.name} {after.name}")
        with bench.running(kernel):
            function = device.function(*wants(seed), 0)
            device.launch(
                function, Geometry((blocks, 1, 1), (threads, 1, 1)), signature_of(source).arguments(arguments), Work()
            )
            device.synchronize()
            _compare(f"{rows} x {columns}, {before.name} to {after.name}", _numbers(out), expected)

    return Case(attempt, wants, BOUNDARY_SHAPES, share=0.5)


class _Uploaded:
    """An epilogue case on the device; its arrays live as long as this does."""

    def __init__(self, device: CudaDevice, case: EpilogueCase) -> None:
        self._device, self._case = device, case
        self._held: list[torch.Tensor] = []

    def arguments(self, out: torch.Tensor, columns: int, residual: torch.Tensor | None) -> EpilogueArguments:
        return self._case.arguments(self._address, out.data_ptr(), columns)

    def _address(self, array: Any, name: str) -> int:
        self._held.append(upload(self._device, array)[0])
        return int(self._held[-1].data_ptr())


def exact_sums(layer: RandomLayer) -> Any:
    """int64 sums of a layer's codes without bias, (rows, columns): of a convolution NHWC pixels by channels."""
    x, weight = input_codes(layer), weight_codes(layer)
    if isinstance(layer.op, LinearShape):
        return reference.linear(np.rint(x).astype(np.int64), weight.T.astype(np.int64))
    op = layer.op
    assert isinstance(op, Conv2dShape)
    found = reference.conv2d(
        layer.input.astype(np.int64), weight.astype(np.int64), stride=op.stride, padding=op.padding,
        dilation=op.dilation, groups=op.groups,
    )  # fmt: skip
    return found.transpose(0, 2, 3, 1).reshape(-1, op.out_channels)


def _grouped_sums(layer: RandomLayer) -> Any:
    """float64 (M, N) of float activations and weights scaled by groups of their inputs."""
    group = layer.precision.group_size
    assert layer.weight_scale is not None
    assert group is not None
    assert isinstance(layer.op, LinearShape)
    scale = np.repeat(layer.weight_scale.astype(np.float64), group, axis=0)[: layer.op.k]
    return layer.input.astype(np.float16).astype(np.float64) @ (layer.weight * scale)


def _numbers(out: torch.Tensor) -> Any:
    """An output as numpy holds it: bfloat16 as its bits."""
    return out.view(torch.int16).cpu().numpy().view(np.uint16) if out.dtype is torch.bfloat16 else out.cpu().numpy()


def _compare(what: str, found: Any, expected: Any, float_sums: bool = False) -> None:
    """Raises `WrongResult`, saying how many are off; equal to the bit, unless sums are in float."""
    if float_sums:
        allowed = FLOAT_SUMS * (_BFLOAT16_BITS if found.dtype == np.uint16 else 1)
        found, expected = from_stored(found), from_stored(expected)
        off = ~(np.abs(found - expected) <= allowed * float(np.abs(expected).max(initial=1e-30)))
    else:
        off = found != expected
    if off.any():
        raise WrongResult(f"{what}: {int(off.sum())} of {off.size} outputs are off", hint="its time means nothing")
