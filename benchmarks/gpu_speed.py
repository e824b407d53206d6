"""Speed: our kernels against libraries in the same run, and INT4 against INT8 where it does not pay."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.bars import at_least
from benchmarks.gpu_bench import Bench
from kernels.backends.base import OpFailed
from kernels.backends.cuda import LEFT_OUT
from kernels.backends.cuda_contender import Contender, Prepared, upload
from kernels.backends.cuda_device import Work
from kernels.backends.cuda_driver import translated
from kernels.backends.cuda_kernels import OurKernels
from kernels.backends.cuda_opponents import TorchFloat, opponents
from kernels.backends.cuda_product import TorchPrepared
from kernels.backends.cuda_timing import (
    Copies,
    GraphOp,
    capture,
    copies_for,
    first_impression_us,
    repeated,
    repeats_for,
)
from kernels.cuda.epilogue import Output
from kernels.interleaving import Protocol, interleave
from kernels.latency_table import COLD_WEIGHTS
from kernels.op_shape import LinearShape, OpShape, parse_op_shape
from kernels.precision import Precision
from kernels.profiles.cuda import cuda_profile
from kernels.random_layer import RandomLayer, random_layer
from kernels.spot_check import sample

TIMING = Protocol(warmup_us=5_000.0, sample_us=0.0, min_samples=30, max_samples=100, arm_seconds=0.5)
INT8, BF16, W4A16 = Precision("w8a8"), Precision("bf16"), Precision("w4a16-g128")
RESNET_CONVS = (
    "conv2d_n32_c64_h56_w56_o64_k3x3_s1x1_p1x1x1x1_d1x1_g1_b1",
    "conv2d_n32_c128_h28_w28_o128_k3x3_s1x1_p1x1x1x1_d1x1_g1_b1",
    "conv2d_n32_c256_h14_w14_o256_k3x3_s1x1_p1x1x1x1_d1x1_g1_b1",
    "conv2d_n32_c512_h7_w7_o512_k3x3_s1x1_p1x1x1x1_d1x1_g1_b1",
    "conv2d_n32_c256_h56_w56_o64_k1x1_s1x1_p0x0x0x0_d1x1_g1_b1",
)
DRY_CONVS = ("conv2d_n1_c16_h8_w8_o16_k3x3_s1x1_p1x1x1x1_d1x1_g1_b1",)
FEW_ROWS = (17, 32, 64, 128)
DECODING_ROWS = (1, 4, 8, 16)


class RawIntMm(Contender):
    """`torch._int_mm` alone, cuBLASLt's int8 product: int32 sums, as our kernel writes with `Output.S32`."""

    name = "torch._int_mm"

    def why_not(self, op: OpShape, precision: Precision) -> str | None:
        return None if isinstance(op, LinearShape) and op.m > 16 else "needs more than 16 rows"

    def prepare(self, layer: RandomLayer, weight_copies: int, input_copies: int) -> Prepared:
        weights = upload(self.device, layer.weight.T, weight_copies)
        inputs = upload(self.device, layer.input, input_copies)
        return TorchPrepared(
            self.device, layer, self.name, lambda variant, w, x: torch._int_mm(inputs[x], weights[w].t()), tolerance=1.0
        )


def speed(bench: Bench) -> None:
    """The bars, in the order of their importance; each is a part of its own."""
    size = 128 if bench.is_dry else 4096
    bench.part("4096^3", lambda: large(bench, size))
    bench.part("few rows", lambda: few_rows(bench, size))
    bench.part("weight only", lambda: weight_only(bench, 256 if bench.is_dry else 8192))
    bench.part("convolutions", lambda: convolutions(bench, DRY_CONVS if bench.is_dry else RESNET_CONVS))
    square = 64 if bench.is_dry else size
    for m in (square, 16, 1):
        bench.part(f"precisions at {m} rows", lambda m=m: every_precision(bench, LinearShape(m, square, square)))


def large(bench: Bench, size: int) -> None:
    ratio = against_int_mm(bench, size, size)
    bench.bar(at_least("w8a8 of cuBLASLt at 4096^3", ratio, "x", 0.85))


def few_rows(bench: Bench, size: int) -> None:
    ratios = [against_int_mm(bench, rows, size) for rows in FEW_ROWS]
    bench.bar(at_least("w8a8 of torch._int_mm, 17 to 128 rows, least", min(ratios), "x", 1.0))


def layer_for(bench: Bench, op: OpShape, precision: Precision) -> RandomLayer:
    profile = cuda_profile("speed", bench.device.identity, bench.device.arch)
    recipe = None if precision.is_float else profile.recipe(op.kind, precision)
    return random_layer(op, precision, recipe)


def best(bench: Bench, contender: Contender, layer: RandomLayer, copies: Copies, check: bool = True) -> GraphOp:
    """The contender's fastest variant as an arm; wrong ones are noted and not timed."""
    with translated(contender.name or "our kernels"):
        prepared = contender.prepare(layer, copies.weights, copies.inputs)
    expected = sample(layer) if check else None
    tried: dict[str, float] = {}
    for variant in prepared.variants:
        name = f"{contender.name} {variant}".strip()
        try:
            with bench.running(name), translated(name):
                if expected is not None:
                    prepared.check(variant, expected)
                else:
                    prepared.enqueue(variant, 0, 0)
                    bench.device.synchronize()
                tried[variant] = first_impression_us(prepared, variant, copies)
        except LEFT_OUT as error:
            bench.note(f"left out: {layer.op.signature} {layer.precision} {name}", error.message)
    if not tried:
        raise OpFailed(f"{layer.op.signature} in {layer.precision}: nothing ran")
    variant = min(tried, key=lambda name: tried[name])
    repeats = repeats_for(tried[variant], copies)
    graph = capture(prepared, variant, copies, repeats)
    return GraphOp(graph, repeats, bench.clock, f"{contender.name} {variant}".strip(), tried, holds=prepared)


def timed(bench: Bench, arms: dict[str, GraphOp]) -> dict[str, float]:
    """Microseconds of every arm, taking turns."""
    found = interleave(
        {name: arm.run for name, arm in arms.items()}, threads=1, protocol=TIMING, clock=bench.clock,
        anchor=next(iter(arms.values())).run,
    )  # fmt: skip
    us = {name: found.timings[name].median_us / arm.repeats for name, arm in arms.items()}
    bench.note("timed", {arms[name].executed_kernel: round(value, 3) for name, value in us.items()})
    return us


def against_int_mm(bench: Bench, m: int, size: int) -> float:
    """Speed of our raw int8 product over cuBLASLt's."""
    op = LinearShape(m, size, size, bias=False)
    layer, copies = layer_for(bench, op, INT8), copies_for(op, INT8, bench.device.identity.l2_bytes, COLD_WEIGHTS)
    arms = {
        "ours": best(bench, OurKernels(bench.device, Output.S32), layer, copies, check=False),
        "theirs": best(bench, RawIntMm(bench.device), layer, copies, check=False),
    }
    us = timed(bench, arms)
    ratio = us["theirs"] / us["ours"]
    bench.note(f"w8a8 of torch._int_mm, {m} rows", {"x": ratio, "TOPS": 2 * op.macs / us["ours"] / 1e6})
    return ratio


def copy_bytes_per_us(bench: Bench, elements: int) -> float:
    """Measured device-to-device copy, counting bytes read and written."""
    source = bench.device.run_torch(
        "random", lambda: torch.randn(elements, dtype=torch.float32, device=bench.device.torch_device), Work()
    )
    target = torch.empty_like(source)
    work = Work(moved_bytes=8.0 * elements)

    def copy() -> None:
        bench.device.run_torch("copy", lambda: target.copy_(source), work)

    arm = repeated(bench.device, bench.clock, copy, "copy", 10)
    us = timed(bench, {"copy": arm})["copy"]
    return 8.0 * elements / us


def weight_only(bench: Bench, size: int) -> None:
    """Bytes of 4-bit weights a microsecond at few rows, as a share of the measured copy."""
    copied = copy_bytes_per_us(bench, 1 << (16 if bench.is_dry else 28))
    bench.note("copy GB/s", copied / 1e3)
    shares = []
    for rows in DECODING_ROWS:
        op = LinearShape(rows, size, size)
        copies = copies_for(op, W4A16, bench.device.identity.l2_bytes, COLD_WEIGHTS)
        bf16 = copies_for(op, BF16, bench.device.identity.l2_bytes, COLD_WEIGHTS)
        arms = {
            "w4a16": best(bench, OurKernels(bench.device), layer_for(bench, op, W4A16), copies),
            "bf16": best(bench, TorchFloat(bench.device, "bf16"), layer_for(bench, op, BF16), bf16),
        }
        us = timed(bench, arms)
        scales = 2 * op.weight_count / 128
        shares.append((op.weight_count / 2 + scales) / us["w4a16"] / copied)
        bench.note(f"w4a16 at {rows} rows", {"of copy": shares[-1], "times bf16": us["bf16"] / us["w4a16"]})
    bench.bar(at_least("w4a16 of copy bandwidth, 1 to 16 rows, least", min(shares), "", 0.7))


def convolutions(bench: Bench, signatures: tuple[str, ...]) -> None:
    """Int8 convolutions against bf16 channels-last ones."""
    gains = []
    for signature in signatures:
        op = parse_op_shape(signature)
        copies = copies_for(op, INT8, bench.device.identity.l2_bytes, COLD_WEIGHTS)
        arms = {
            "int8": best(bench, OurKernels(bench.device), layer_for(bench, op, INT8), copies),
            "bf16": best(
                bench, TorchFloat(bench.device, "bf16"), layer_for(bench, op, BF16), Copies(copies.weights, 1)
            ),
        }
        us = timed(bench, arms)
        gains.append(us["bf16"] / us["int8"])
        bench.note(f"int8 of bf16: {signature}", gains[-1])
    bench.bar(at_least("conv int8 of bf16 channels-last, geometric mean", _geometric_mean(gains), "x", 1.5))


def every_precision(bench: Bench, op: LinearShape) -> None:
    """The best of every precision on one product, by whoever: where 4 bits are no faster than 8 it shows."""
    arms: dict[str, GraphOp] = {}
    for name in ("fp16", "fp8", "w8a8", "w4a8", "w4a4", "w4a16-g128"):
        precision = Precision(name)
        copies = copies_for(op, precision, bench.device.identity.l2_bytes, COLD_WEIGHTS)
        for contender in (OurKernels(bench.device), *opponents(bench.device)):
            if contender.why_not(op, precision) is not None:
                continue
            try:
                found = best(bench, contender, layer_for(bench, op, precision), copies)
            except LEFT_OUT as error:
                bench.note(f"left out: {op.signature} {name} {contender.name}", error.message)
                continue
            arms[f"{name} {contender.name or 'ours'}"] = found
    us = timed(bench, arms)
    bench.note(f"us by precision and contender, {op.signature}", us)


def _geometric_mean(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(np.asarray(values)))))
