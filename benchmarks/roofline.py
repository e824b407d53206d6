"""How far estimates are from measurements: published ones on a T4, and our own on this CPU. No GPU is needed.

The opponent is the bare roofline, products at the cited peak or bytes at the cited bandwidth. On the T4 the share of
the peak was fitted to the 19 INT8 convolutions, so the INT4 ones are the test. Here the peaks are those that a few
large ops reach, and the test is all the others. `factor` is the typical ratio of estimate to measurement or back.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.bars import at_least, at_most, finish, print_table
from kernels.estimate import estimate
from kernels.hardware_profile import HardwareProfile, Peak
from kernels.latency_table import LatencyTable
from kernels.microbench import empty_table, measure_rows
from kernels.op_shape import Conv2dShape, LinearShape, OpShape
from kernels.precision import FP32, Precision
from kernels.registry import backend_for, load_profile

HAWQ = Path(__file__).parent / "data" / "hawqv3_resnet18.json"
INT8, INT4 = Precision("w8a8"), Precision("w4a4")
LARGE: tuple[OpShape, ...] = (LinearShape(512, 1024, 1024), Conv2dShape(1, 256, 14, 14, 256, (3, 3), padding=(1,) * 4))
THIN = LinearShape(1, 4096, 4096)
OTHERS: tuple[OpShape, ...] = (
    Conv2dShape(1, 64, 56, 56, 64, (3, 3), padding=(1,) * 4),
    Conv2dShape(1, 128, 28, 28, 128, (3, 3), padding=(1,) * 4),
    Conv2dShape(1, 128, 28, 28, 256, (3, 3), (2, 2), (1,) * 4),
    Conv2dShape(1, 512, 7, 7, 512, (3, 3), padding=(1,) * 4),
    Conv2dShape(1, 64, 56, 56, 256, (1, 1)),
    Conv2dShape(1, 512, 28, 28, 128, (1, 1)),
    LinearShape(64, 384, 1536),
    LinearShape(64, 1536, 384),
    LinearShape(128, 768, 768),
    LinearShape(16, 1024, 1024),
    LinearShape(1, 2048, 1000),
    LinearShape(1, 1024, 4096),
)


@dataclass(frozen=True)
class Compared:
    """One op's measured time beside its estimate and the bare roofline, in microseconds."""

    device: str
    op: OpShape
    precision: str
    measured_us: float
    estimated_us: float
    bare_us: float


def main() -> int:
    rows = [*published_t4(INT8, "tuned_kernel_ms_int8"), *published_t4(INT4, "tuned_kernel_ms_int4"), *this_cpu()]
    print_table(
        ("device", "op", "precision", "measured us", "estimate us", "bare roofline us"),
        [(r.device, r.op.signature, r.precision, r.measured_us, r.estimated_us, r.bare_us) for r in rows],
    )
    held_out = [row for row in rows if row.precision == INT4.name]
    here = [row for row in rows if row.device != "t4"]
    bars = [
        at_most("t4_int4_factor", factor(held_out), "x", 1.3),
        at_most("this_cpu_factor", factor(here), "x", 2.0),
        at_least("this_cpu_log_correlation", correlation(here), "", 0.9),
    ]
    return finish(
        "roofline", bars, bare_roofline={"t4_int4_factor": bare_factor(held_out), "this_cpu_factor": bare_factor(here)}
    )


def published_t4(precision: Precision, key: str) -> list[Compared]:
    """The 19 convolutions of ResNet18 at batch 8, as HAWQ-V3's tuned kernels ran them."""
    profile = load_profile("t4")
    found = []
    for layer in json.loads(HAWQ.read_text())["layers"]:
        kernel, size = layer["kernel"], layer["in_hw"]
        op = Conv2dShape(
            8, layer["c_in"], size, size, layer["c_out"], (kernel, kernel), (layer["stride"],) * 2, (kernel // 2,) * 4
        )
        found.append(_compared(profile, op, precision, 1000 * layer[key]))
    return found


def this_cpu() -> list[Compared]:
    """Rows measured now on one thread, against estimates from the rates that the large ones among them reach."""
    profile = load_profile("cpu-local")
    pairs = [(op, precision) for op in (*LARGE, THIN, *OTHERS) for precision in (FP32, INT8)]
    table = measure_rows(
        backend_for(profile), profile, pairs, 1, empty_table(profile),
        lambda done, total: print(f"\r{done}/{total} rows", end="", file=sys.stderr),
    )  # fmt: skip
    print(file=sys.stderr)
    rated = replace(profile, peaks=_reached(table))
    known = [(op, p) for op, p in pairs if op in OTHERS and table.has(op, p, 1)]
    return [_compared(rated, op, p, table.lookup(op, p, 1).median_us) for op, p in known]


def _reached(table: LatencyTable) -> dict[str, Peak]:
    """Rates that large ops reach: the geometric mean over a product and a convolution, and bytes of thin weights."""

    def rate(precision: Precision) -> float:
        rates = [2 * op.macs / table.lookup(op, precision, 1).median_us / 1e6 for op in LARGE]
        return math.exp(sum(math.log(each) for each in rates) / len(rates))

    bytes_per_us = THIN.weight_count * FP32.weight_bits / 8 / table.lookup(THIN, FP32, 1).median_us
    here = "large ops of this run", "measured"
    return {
        "fp32": Peak(rate(FP32), "TFLOPS", *here),
        "int8": Peak(rate(INT8), "TOPS", *here),
        "memory": Peak(bytes_per_us / 1e3, "GB/s", *here),
    }


def _compared(profile: HardwareProfile, op: OpShape, precision: Precision, measured_us: float) -> Compared:
    bits = max(precision.weight_bits, precision.activation_bits)
    peak = profile.peaks[precision.name if precision.is_float else f"int{bits}"]
    moved = (op.weight_count * precision.weight_bits + (op.input_elements + op.output_elements) * bits) / 8
    bare_us = max(2 * op.macs / peak.value / 1e6, moved / profile.peaks["memory"].value / 1e3)
    return Compared(profile.slug, op, precision.name, measured_us, estimate(profile, op, precision).us, bare_us)


def factor(rows: Sequence[Compared]) -> float:
    return float(np.exp(np.mean([abs(math.log(row.estimated_us / row.measured_us)) for row in rows])))


def bare_factor(rows: Sequence[Compared]) -> float:
    return float(np.exp(np.mean([abs(math.log(row.bare_us / row.measured_us)) for row in rows])))


def correlation(rows: Sequence[Compared]) -> float:
    measured, estimated = np.log([[row.measured_us, row.estimated_us] for row in rows]).T
    return float(np.corrcoef(measured, estimated)[0, 1])


if __name__ == "__main__":
    sys.exit(main())
