"""Bundle: the folder that is deployed, with the quantized model, its session options and its bit plan."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from kernels.hardware_profile import HardwareProfile
from kernels.operating_point import OperatingPoint
from search.artifact.bit_plan import bit_plan
from search.artifact.qdq import export_assembly
from search.artifact.session import BIT_PLAN_FILE, MODEL_FILE, SESSION_OPTIONS_FILE, SESSION_OPTIONS_SCHEMA
from search.assembly import Assembly
from search.graph import Graph

# A protobuf message ends at 2 GB; above this the weights go to a file of their own.
EXTERNAL_DATA_ABOVE_BYTES = 1_500_000_000
EXTERNAL_DATA_FILE = "model.onnx.data"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class BundleFile:
    """One written file: its size in bytes and the sha256 of its content."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """A written artifact. `size_bytes` counts the model and its external data, which is what budgets bound."""

    folder: Path
    files: Mapping[str, BundleFile]

    @property
    def model(self) -> Path:
        return self.folder / MODEL_FILE

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for name, file in self.files.items() if name in (MODEL_FILE, EXTERNAL_DATA_FILE))

    @property
    def sha256(self) -> str:
        return self.files[MODEL_FILE].sha256

    def to_json(self) -> dict[str, Any]:
        return {
            "size_bytes": self.size_bytes,
            "files": {name: vars(file) for name, file in sorted(self.files.items())},
        }


def write_bundle(
    folder: Path,
    graph: Graph,
    assembly: Assembly,
    profile: HardwareProfile,
    point: OperatingPoint,
    *,
    external_data_above_bytes: int = EXTERNAL_DATA_ABOVE_BYTES,
) -> Bundle:
    """Export `assembly` for the profile's runtime into `folder`, which appears complete or not at all.

    Files of an earlier bundle in the folder are replaced; others are left alone. Equal arguments give equal bytes.
    """
    model = export_assembly(graph, assembly, profile.runtime)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _save(model, staging, external_data_above_bytes)
        options = {
            "schema_version": SESSION_OPTIONS_SCHEMA,
            "runtime": profile.runtime,
            "runtime_version": profile.runtime_version,
            "threads": point.threads,
            "operating_point": point.to_json(),
            "session_options": dict(sorted(profile.session_options.items())),
        }
        _write_json(staging / SESSION_OPTIONS_FILE, options)
        _write_json(staging / BIT_PLAN_FILE, bit_plan(graph, assembly, profile.runtime).to_json())
        files = {path.name: BundleFile(path.stat().st_size, _sha256(path)) for path in sorted(staging.iterdir())}
        _publish(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Bundle(folder, files)


def _save(model: onnx.ModelProto, folder: Path, external_data_above_bytes: int) -> None:
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights > external_data_above_bytes:
        onnx.save_model(
            model, folder / MODEL_FILE, save_as_external_data=True, location=EXTERNAL_DATA_FILE, size_threshold=1024
        )
    else:
        (folder / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _publish(staging: Path, folder: Path) -> None:
    for path in staging.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    staging.chmod(0o755)
    if not folder.exists():
        staging.rename(folder)
        return
    for path in sorted(staging.iterdir(), key=lambda path: path.name == MODEL_FILE):
        os.replace(path, folder / path.name)
    if not (staging / EXTERNAL_DATA_FILE).exists() and (folder / EXTERNAL_DATA_FILE).exists():
        _drop_stale_data(folder)


def _drop_stale_data(folder: Path) -> None:
    """Remove external data of an earlier bundle that the new model does not point to."""
    model = onnx.load(folder / MODEL_FILE, load_external_data=False)
    if not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        (folder / EXTERNAL_DATA_FILE).unlink()
