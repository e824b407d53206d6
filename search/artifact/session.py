"""Sessions: an exported model opened in the runtime it was written for, with its shipped session options."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime

from kernels.backends.base import BadModel, LoadedModel
from search.errors import BadSubmission

MODEL_FILE = "model.onnx"
SESSION_OPTIONS_FILE = "session_options.json"
BIT_PLAN_FILE = "bit_plan.json"
SESSION_OPTIONS_SCHEMA = 1
_ERROR_LEVEL = 3


def open_model(
    model: bytes | Path, runtime: str, threads: int, session_options: Mapping[str, str] | None = None
) -> LoadedModel:
    """The model compiled by `runtime`; None stands for the session options that artifacts ship with.

    Raises `BadSubmission` (`runtime_unknown`) for a runtime that is not on this machine's list, and the backend's
    `BadModel` when it does not load.
    """
    # The runtimes are imported when asked for: each costs about a second and holds threads.
    if runtime in ("onnxruntime_cpu", "fake"):
        from kernels.backends import onnxruntime_cpu

        options = onnxruntime_cpu.SESSION_OPTIONS if session_options is None else session_options
        return onnxruntime_cpu.OnnxRuntimeModel(model, threads, options)
    if runtime == "openvino":
        from kernels.backends import openvino

        options = openvino.SESSION_OPTIONS if session_options is None else session_options
        return openvino.OpenVinoModel(model, threads, options)
    raise BadSubmission(
        f"no runtime {runtime!r} to open a model with",
        hint="runtimes are onnxruntime_cpu and openvino",
        code="runtime_unknown",
    )


def onnxruntime_options(threads: int, session_options: Mapping[str, str]) -> onnxruntime.SessionOptions:
    """ONNX Runtime's own form of the session options, quiet but for errors."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERROR_LEVEL
    for key, value in session_options.items():
        options.add_session_config_entry(key, value)
    return options


def optimized_graph(model: bytes | Path, threads: int, session_options: Mapping[str, str]) -> onnx.ModelProto:
    """The graph that ONNX Runtime executes after its optimizations; large weights stay outside.

    Raises the backend's `BadModel` when the model does not load.
    """
    options = onnxruntime_options(threads, session_options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        source = str(model) if isinstance(model, Path) else model
        try:
            onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exception classes are private and differ between releases
            raise BadModel(
                f"ONNX Runtime {onnxruntime.__version__} does not load the model: {error}",
                hint="check it with onnx.checker, and that its opset is one this runtime knows",
            ) from error
        return onnx.load(path, load_external_data=False)


def open_bundle(folder: Path, threads: int | None = None) -> LoadedModel:
    """The artifact in `folder`, opened with the session options beside it, at the threads it was made for.

    Raises `BadSubmission` (`bad_bundle`) when a file is missing or malformed.
    """
    try:
        stated = json.loads((folder / SESSION_OPTIONS_FILE).read_text(encoding="utf-8"))
        runtime, options = str(stated["runtime"]), dict(stated["session_options"])
        count = int(stated["threads"]) if threads is None else threads
        known = stated["schema_version"] == SESSION_OPTIONS_SCHEMA
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadSubmission(
            f"{folder} holds no readable {SESSION_OPTIONS_FILE}: {error}",
            hint="give the folder of an artifact, with all its files",
            code="bad_bundle",
        ) from error
    if not known or not (folder / MODEL_FILE).is_file():
        raise BadSubmission(
            f"{folder} is not an artifact this version reads",
            hint=f"it needs {MODEL_FILE} and {SESSION_OPTIONS_FILE} of schema {SESSION_OPTIONS_SCHEMA}",
            code="bad_bundle",
        )
    return open_model(folder / MODEL_FILE, runtime, count, options)
