"""The boundary kernels on the CPU against the reference, per tensor and per channel, aligned or not."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.cuda.epilogue import Output
from kernels.cuda.int8 import DEQUANTIZE, QUANTIZE, REQUANTIZE
from kernels.cuda.random_epilogue import DTYPES, from_stored, random_epilogue, stored
from kernels.recipe import Granularity, Numerics
from kernels.reference import dequantize, quantize
from tests.kernels.cuda.simt.emulator import Memory, emulate

SMALL = {"BLOCK_THREADS": 64, "ITEMS": 2}
SHAPES = [(1, 1), (3, 64), (7, 37), (40, 12), (130, 5)]


def numerics(output: Output) -> Numerics:
    return Numerics(8, symmetric=False, signed=output is Output.S8, granularity=Granularity.TENSOR)


def grid(rows: int, columns: int) -> tuple[int]:
    return (-(-rows * -(-columns // 4) // (SMALL["BLOCK_THREADS"] * SMALL["ITEMS"])),)


@pytest.mark.parametrize("per_channel", [0, 1])
@pytest.mark.parametrize(
    ("input_type", "output"), [(Output.F32, Output.S8), (Output.F16, Output.U8), (Output.BF16, Output.S8)]
)
def test_quantize_equals_the_reference(input_type: Output, output: Output, per_channel: int) -> None:
    kernel = emulate(QUANTIZE, more_defines={**SMALL, "INPUT": int(input_type), "OUTPUT": int(output)})
    for seed, (rows, columns) in enumerate(SHAPES):
        rng = np.random.default_rng(seed)
        device = Memory()
        values = (rng.standard_normal((rows, columns)) * 30).astype(np.float32)
        values.ravel()[::7] = np.rint(values.ravel()[::7]) + 0.5  # ties at scale 1
        values.ravel()[:1] = 1e30 if input_type is not Output.F16 else 6e4
        held = stored(values, input_type)
        seen = from_stored(held)
        channels = columns if per_channel else 1
        scale = np.where(rng.integers(2, size=channels), 1, rng.uniform(0.1, 2, channels)).astype(np.float32)
        zero = rng.integers(-9, 10, channels).astype(np.int32)
        ld = columns + 4 * int(rng.integers(2))
        out = device.empty((rows, ld), DTYPES[output], "codes")
        code = numerics(output)
        kernel.launch(
            device, grid(rows, columns), (SMALL["BLOCK_THREADS"],),
            [device.upload(held, "x"), out, device.upload(scale, "scale"), device.upload(zero, "zero_point"),
             *map(np.int32, (rows, columns, columns, ld, per_channel, code.code_min, code.code_max))],
        )  # fmt: skip
        # Values beyond 32 bits saturate before the zero point is added, which the clip hides.
        expected = quantize(np.clip(seen, -1e8, 1e8), scale, zero, code)
        np.testing.assert_array_equal(out.array[:, :columns], expected)
        assert (out.array[:, columns:].view(np.uint8) == 0xCD).all()


@pytest.mark.parametrize("per_channel", [0, 1])
@pytest.mark.parametrize("output", [Output.F32, Output.F16])
def test_dequantize_rounds_once(output: Output, per_channel: int) -> None:
    kernel = emulate(DEQUANTIZE, more_defines={**SMALL, "INPUT": int(Output.U8), "OUTPUT": int(output)})
    for seed, (rows, columns) in enumerate(SHAPES):
        rng = np.random.default_rng(seed)
        device = Memory()
        codes = rng.integers(0, 256, (rows, columns), np.uint8)
        channels = columns if per_channel else 1
        scale = rng.uniform(0.01, 2, channels).astype(np.float32)
        zero = rng.integers(0, 256, channels).astype(np.int32)
        out = device.empty((rows, columns), DTYPES[output], "y")
        kernel.launch(
            device, grid(rows, columns), (SMALL["BLOCK_THREADS"],),
            [device.upload(codes, "codes"), out, device.upload(scale, "scale"), device.upload(zero, "zero_point"),
             *map(np.int32, (rows, columns, columns, columns, per_channel))],
        )  # fmt: skip
        expected = dequantize(codes, scale, zero).astype(np.float32).astype(DTYPES[output])
        np.testing.assert_array_equal(out.array, expected)


@pytest.mark.parametrize(
    ("input_type", "output"), [(Output.S32, Output.S8), (Output.S8, Output.U8), (Output.S32, Output.F32)]
)
def test_requantize_is_the_epilogue_of_a_matrix(input_type: Output, output: Output) -> None:
    kernel = emulate(REQUANTIZE, more_defines={**SMALL, "INPUT": int(input_type), "OUTPUT": int(output)})
    for seed, (rows, columns) in enumerate(SHAPES):
        rng = np.random.default_rng(seed)
        device = Memory()
        top = 127 if input_type is Output.S8 else 1 << 20
        values = rng.integers(-top, top, (rows, columns)).astype(DTYPES[input_type])
        out = device.empty((rows, columns), DTYPES[output], "out")
        case = random_epilogue(rng, output, rows, columns, spread=top / 2)
        kernel.launch(
            device, grid(rows, columns), (SMALL["BLOCK_THREADS"],),
            [device.upload(values, "x"), case.arguments(device.address_of, out.address, columns),
             *map(np.int32, (rows, columns, columns, 3))],
        )  # fmt: skip
        np.testing.assert_array_equal(out.array, case.expected(values.astype(np.int64) - 3))
