"""Study folder: the values of a study as files by fixed names, what each stage reads and leaves behind."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kernels.hardware_profile import HardwareProfile
from kernels.latency_table import LatencyTable
from kernels.registry import load_profile, read_profile
from search.allocation.question import Question, question_file
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

    @property
    def saved(self) -> Path:
        """Where stages leave parts they have finished, for the next attempt; files appear in it whole."""
        folder = self.path / "saved"
        folder.mkdir(exist_ok=True)
        return folder

    def profile(self, hardware: str) -> HardwareProfile:
        """The profile as its device announced it where that lies in the folder, else by name on this machine."""
        announced = self.path / f"hardware_{hardware}.json"
        return read_profile(announced) if announced.exists() else load_profile(hardware)

    def dataset_path(self) -> Path | None:
        return next((self.path / name for name in DATASETS if (self.path / name).exists()), None)

    def candidates(self, target: int) -> CandidateSet:
        return CandidateSet.load(self.path, f"_{target}")

    def sensitivities(self, target: int) -> dict[str, Sensitivity]:
        return load_sensitivities(self.path, f"_{target}")

    def save_scan(
        self, target: int, candidates: CandidateSet, sensitivities: dict[str, Sensitivity], loss: ModelLoss
    ) -> list[str]:
        return [
            *candidates.save(self.path, f"_{target}"),
            *save_sensitivities(self.path, sensitivities, f"_{target}"),
            self.write_json(f"loss_{target}.json", loss.to_json()),
        ]

    def loss(self, target: int) -> ModelLoss:
        return ModelLoss.from_json(self.read_json(f"loss_{target}.json"))

    def latency_table(self, target: int) -> LatencyTable | None:
        """The fullest of the table a stage wrote, its last partial one, and the rows known before it began."""
        name = f"latency_table_{target}.json"
        paths = (self.path / name, self.saved / name, self.path / f"known_{name}")
        found = [LatencyTable.loads(path.read_text()) for path in paths if path.exists()]
        return max(found, key=lambda table: len(table.rows), default=None)

    def save_partial_table(self, target: int, table: LatencyTable) -> None:
        partial = self.saved / f"latency_table_{target}.partial"
        partial.write_text(json.dumps(table.to_json(), allow_nan=False))
        partial.rename(partial.with_suffix(".json"))

    def latency_fit(self, target: int) -> LatencyFit | None:
        path = self.path / f"latency_fit_{target}.json"
        return LatencyFit.from_json(json.loads(path.read_text())) if path.exists() else None

    def save_plans(self, target: int, plans: Iterable[PlannedAssembly], extra: dict[str, Any]) -> str:
        return self.write_json(f"plans_{target}.json", {"plans": [plan.to_json() for plan in plans], **extra})

    def save_question(self, target: int, question: Question) -> str:
        name = question_file(target)
        question.save(self.path / name)
        return name

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
