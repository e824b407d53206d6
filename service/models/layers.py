"""Layers of a model, as the check stage of a study found them in its sandbox."""

from __future__ import annotations

import json

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.blobs import Blobs
from service.lifecycle import StageState
from service.store.models import StageRow, StudyRow

GRAPH = "graph.json"


class LayerView(BaseModel):
    """One weighted op: Conv, Gemm, MatMul with a constant, Gather from a constant."""

    name: str
    kind: str
    weights: int
    unquantized_reason: str | None = None


class UnquantizedView(BaseModel):
    """An op that does work but is never quantized, and why."""

    node: str
    op_type: str
    reason: str


class LayerList(BaseModel):
    """What is known of a model since a study has checked it; `notes` are sentences about the file."""

    model: str
    study: str
    opset: int | None = None
    layers: list[LayerView] = []
    unquantized: list[UnquantizedView] = []
    notes: list[str] = []


def checked_graph(session: Session, model_id: str) -> tuple[str, str] | None:
    """The study that checked a model last, and the sha256 of what it found; None before the first check."""
    query = (
        select(StudyRow.id, StageRow.outputs)
        .join(StageRow, StageRow.study_id == StudyRow.id)
        .where(
            StudyRow.model_id == model_id,
            StageRow.kind == "check",
            StageRow.state == StageState.SUCCEEDED.value,
        )
        .order_by(StudyRow.created_at.desc(), StudyRow.id.desc())
        .limit(1)
    )
    for study_id, outputs in session.execute(query):
        for output in outputs or []:
            if output["name"] == GRAPH:
                return study_id, output["sha256"]
    return None


def read_layers(blobs: Blobs, model_id: str, study_id: str, sha256: str) -> LayerList:
    """The stored document as the API shows it."""
    with blobs.open(sha256) as file:
        document = json.load(file)
    return LayerList.model_validate({**document, "model": model_id, "study": study_id})
