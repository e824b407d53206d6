"""Op times: where the time of one run goes, as the runtime's own profiler says, op by op.

Quantizing the layers can leave something else as the slowest: conversions, an activation that runs in float, a residual
Add. The profiler slows a run down a little, so shares are meant, not times.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import openvino

from search.artifact.executed import WEIGHTED_TYPES
from search.artifact.session import onnxruntime_options
from search.errors import BadSubmission

PROFILED_RUNTIMES = ("onnxruntime_cpu", "openvino")
RUNS = 10
LARGE_SHARE = 0.1
"""An op without weights that takes more of a run than this is named in the report."""


@dataclass(frozen=True)
class OpTime:
    """One executed op: its share of the time of a run (the median of several), and whether it may carry weights."""

    name: str
    op_type: str
    share: float
    is_weighted: bool

    @property
    def is_conspicuous(self) -> bool:
        return not self.is_weighted and self.share > LARGE_SHARE


def op_times(
    model: Path,
    runtime: str,
    threads: int,
    session_options: Mapping[str, str],
    inputs: Mapping[str, np.ndarray[Any, Any]],
    runs: int = RUNS,
) -> tuple[OpTime, ...]:
    """Every op that ran, the slowest first. Raises `BadSubmission` (`runtime_unknown`) for other runtimes."""
    if runtime not in PROFILED_RUNTIMES:
        raise BadSubmission(
            f"no profiler for runtime {runtime!r}",
            hint=f"there is one for {' and '.join(PROFILED_RUNTIMES)}",
            code="runtime_unknown",
        )
    profiler = _onnxruntime if runtime == "onnxruntime_cpu" else _openvino
    taken = profiler(model, threads, session_options, inputs, runs)
    typical = {op: median(times) for op, times in taken.items()}
    total = sum(typical.values()) or 1.0
    found = [OpTime(name, kind, us / total, kind in WEIGHTED_TYPES) for (name, kind), us in typical.items()]
    return tuple(sorted(found, key=lambda op: -op.share))


_Taken = dict[tuple[str, str], list[float]]


def _onnxruntime(
    model: Path,
    threads: int,
    session_options: Mapping[str, str],
    inputs: Mapping[str, np.ndarray[Any, Any]],
    runs: int,
) -> _Taken:
    options = onnxruntime_options(threads, session_options)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        for _ in range(runs + 1):
            session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    taken: _Taken = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            op = event["name"].removesuffix("_kernel_time"), str(event["args"]["op_name"])
            taken.setdefault(op, []).append(float(event["dur"]))
    return {op: times[1:] for op, times in taken.items()}  # the first run also packs weights


def _openvino(
    model: Path,
    threads: int,
    session_options: Mapping[str, str],
    inputs: Mapping[str, np.ndarray[Any, Any]],
    runs: int,
) -> _Taken:
    options = {**session_options, "INFERENCE_NUM_THREADS": str(threads), "PERF_COUNT": "YES"}
    request = openvino.Core().compile_model(str(model), "CPU", options).create_infer_request()
    taken: _Taken = {}
    for run in range(runs + 1):
        request.infer(dict(inputs))
        for info in request.profiling_info if run else ():
            if info.status == openvino.ProfilingInfo.Status.EXECUTED:
                taken.setdefault((info.node_name, info.node_type), []).append(info.real_time.total_seconds() * 1e6)
    return taken
