"""Study folder: the values of a study as files by fixed names, what each stage reads and leaves behind."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kernels.latency_table import LatencyTable
from search.candidates.candidate_set import CandidateSet
from search.errors import BadSubmission
from search.graph import Graph
from search.latency.fit import LatencyFit
from search.loss.model_loss import ModelLoss
from search.onnx_import import load_graph
from search.planning.plan import PlannedAssembly
from search.sensitivity.estimate import Sensitivity
from search.sensitivity.storage import load_sensitivities, save_sensitivities

MODEL = "model.onnx"
DATASETS = ("dataset.npz", "dataset.safetensors")


class StudyFolder:
    """Reads and writes the values between stages. Files are flat, so that a service can store them one by one."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def graph(self) -> Graph:
        if not (self.path / MODEL).exists():
            raise BadSubmission("the study has no model", hint=f"put the ONNX file in as {MODEL}", code="model_missing")
        return load_graph(self.path / MODEL)

    def dataset_path(self) -> Path | None:
        return next((self.path / name for name in DATASETS if (self.path / name).exists()), None)

    def candidates(self) -> CandidateSet:
        return CandidateSet.load(self.path)

    def sensitivities(self) -> dict[str, Sensitivity]:
        return load_sensitivities(self.path)

    def save_scan(self, candidates: CandidateSet, sensitivities: dict[str, Sensitivity], loss: ModelLoss) -> list[str]:
        candidates.save(self.path)
        save_sensitivities(self.path, sensitivities)
        self.write_json("loss.json", loss.to_json())
        return ["candidates.json", "candidates.npz", "sensitivity.json", "interactions.npz", "loss.json"]

    def loss(self) -> ModelLoss:
        return ModelLoss.from_json(self.read_json("loss.json"))

    def latency_table(self, target: int) -> LatencyTable | None:
        path = self.path / f"latency_table_{target}.json"
        return LatencyTable.loads(path.read_text()) if path.exists() else None

    def latency_fit(self, target: int) -> LatencyFit | None:
        path = self.path / f"latency_fit_{target}.json"
        return LatencyFit.from_json(json.loads(path.read_text())) if path.exists() else None

    def save_plans(self, target: int, plans: Iterable[PlannedAssembly], extra: dict[str, Any]) -> str:
        return self.write_json(f"plans_{target}.json", {"plans": [plan.to_json() for plan in plans], **extra})

    def plans(self, target: int) -> tuple[list[PlannedAssembly], dict[str, Any]]:
        data = self.read_json(f"plans_{target}.json")
        return [PlannedAssembly.from_json(plan) for plan in data.pop("plans")], data

    def write_json(self, name: str, value: Any) -> str:
        """Write a JSON file whole or not at all; returns its name."""
        partial = self.path / f".{name}.partial"
        partial.write_text(json.dumps(value, indent=1, allow_nan=False))
        partial.rename(self.path / name)
        return name

    def read_json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())
