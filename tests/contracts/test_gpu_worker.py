"""A worker on a machine with a GPU, all processes: it announces the card, and gets the rows that are missing."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from service.hardware_profiles.tables import known_table
from service.store.models import HardwareProfileRow
from tests.faults.running_stack import SqliteStack
from tests.search.small_models import images, small_cnn

STUDY_LIMIT_S = 180.0


@pytest.fixture
def stack() -> Iterator[SqliteStack]:
    found = SqliteStack(
        stages="tests.workers.fake_gpu:STAGES", kernels="tests.workers.fake_gpu", hardware=(), lease_s=60.0, beat_s=0.5
    )
    try:
        found.start("api", "reaper")
        found.spawn("worker", None, "--hardware", "auto")
        found.await_ready()
        yield found
    finally:
        found.close()


def submit(stack: SqliteStack, model: bytes, dataset: str) -> dict[str, Any]:
    uploaded = stack.client.post("/v1/models", files={"file": ("net.onnx", model)}).json()["id"]
    body = {
        "model": uploaded,
        "dataset": dataset,
        "targets": [{"hardware": "h200", "operating_point": {"batch": 4}, "budgets": {"size_bytes": "0.6x"}}],
        "options": {"scan_samples": 64, "front_points": 4, "metrics": ["kl"]},
    }
    answer = stack.client.post("/v1/studies", json=body)
    assert answer.status_code == 201, answer.text
    study = stack.wait(str(answer.json()["id"]), STUDY_LIMIT_S)
    assert study["state"] == "succeeded", study["error"]
    return study


def rows(stack: SqliteStack) -> list[dict[str, Any]]:
    with stack.database.read() as session:
        profile = session.scalars(select(HardwareProfileRow).where(HardwareProfileRow.slug == "h200")).one()
        table = known_table(session, profile)
    assert table is not None
    return list(table["rows"])


def test_a_gpu_worker_measures_what_no_table_has_yet(stack: SqliteStack) -> None:
    (worker,) = stack.client.get("/readyz").json()["workers"]
    assert "measure.h200" in worker["queues"]
    view = stack.client.get("/v1/hardware-profiles/h200").json()
    assert (view["live"], view["profile"]["device"]["name"]) == (True, "NVIDIA H200")

    held = io.BytesIO()
    np.savez(held, **images(384, size=6))
    dataset = stack.client.post("/v1/datasets", files={"file": ("data.npz", held.getvalue())}).json()["id"]

    def exported(seed: int) -> bytes:
        return small_cnn(seed=seed, size=6).model.SerializeToString()

    study = submit(stack, exported(0), dataset)
    assert [verdict["verdict"] for verdict in study["verdicts"]] in (["chosen"], ["no_gain"])
    first = rows(stack)
    assert {row["status"] for row in first} == {"measured"}
    assert any(row["executed_kernel"].startswith("conv_s8") for row in first)

    # The same shapes with other weights: the whole study runs, and not one row is measured again.
    submit(stack, exported(7), dataset)
    assert rows(stack) == first
