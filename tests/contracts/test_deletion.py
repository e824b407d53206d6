"""Models and datasets that go: by request, by expiry, under a study; on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from service.blobs import Blobs
from service.lifecycle import StudyState
from service.settings import Settings
from service.store.database import Database, database_now
from service.store.models import DatasetRow
from service.store.uploads import expire_datasets
from tests.contracts.test_rest_api import post_study, problem
from tests.contracts.test_stage_claims import claimed, study_of
from tests.service.stack import ONNX_BYTES, study_body, upload_model
from workers import claims
from workers.claims import OutputFile
from workers.supervisor import Supervisor

NPZ = b"PK\x03\x04data"


def upload_dataset(http: httpx.Client, query: str = "", content: bytes = NPZ) -> dict[str, Any]:
    answer = http.post(f"/v1/datasets{query}", files={"file": ("d.npz", content)})
    assert answer.status_code in (200, 201), answer.text
    return dict(answer.json())


def study_of_dataset(http: httpx.Client) -> tuple[str, str]:
    dataset = upload_dataset(http)["id"]
    return dataset, post_study(http, dataset=dataset)["id"]


def test_a_model_goes_when_no_study_needs_it(http: httpx.Client) -> None:
    study = post_study(http)
    model = study["model"]
    refused = problem(http.delete(f"/v1/models/{model}"), 409, "in_use")
    assert study["id"] in refused["detail"]
    http.post(f"/v1/studies/{study['id']}/cancel")
    assert http.delete(f"/v1/models/{model}").status_code == 204
    problem(http.delete(f"/v1/models/{model}"), 410, "model_deleted")
    for path in (f"/v1/models/{model}", f"/v1/models/{model}/layers"):
        problem(http.get(path), 410, "model_deleted")
    assert http.get("/v1/models").json()["items"] == []
    assert http.get(f"/v1/studies/{study['id']}").json()["model"] == model, "the study keeps its name"
    problem(http.post("/v1/studies", json=study_body(model)), 410, "model_deleted")
    problem(http.delete("/v1/models/nothing"), 404, "not_found")
    again = http.post("/v1/models", files={"file": ("again.onnx", ONNX_BYTES)})
    assert (again.status_code, again.json()["id"], again.json()["name"]) == (201, model, "again.onnx")
    assert http.post("/v1/studies", json=study_body(model)).status_code == 201


def test_a_study_and_a_deletion_at_once(http: httpx.Client) -> None:
    """Whichever comes first: never a study whose model was gone when it was accepted."""
    for _ in range(5):
        model, start = upload_model(http), threading.Barrier(2)

        def submit() -> int:
            start.wait()  # noqa: B023
            return httpx.post(f"{http.base_url}/v1/studies", json=study_body(model)).status_code  # noqa: B023

        def remove() -> int:
            start.wait()  # noqa: B023
            return httpx.delete(f"{http.base_url}/v1/models/{model}").status_code  # noqa: B023

        with ThreadPoolExecutor(2) as pool:
            outcome = (pool.submit(submit), pool.submit(remove))
            submitted, removed = (future.result() for future in outcome)
        assert (submitted, removed) in ((201, 409), (410, 204))
        for study in http.get("/v1/studies?state=queued").json()["items"]:
            http.post(f"/v1/studies/{study['id']}/cancel")


def test_a_dataset_goes_under_a_study_only_by_force(http: httpx.Client, settings: Settings, database: Database) -> None:
    dataset, study = study_of_dataset(http)
    problem(http.delete(f"/v1/datasets/{dataset}"), 409, "in_use")
    assert http.delete(f"/v1/datasets/{dataset}?force=true").status_code == 204
    problem(http.get(f"/v1/datasets/{dataset}"), 410, "dataset_deleted")
    stage = claims_of(database, study)
    Supervisor(settings, database, Blobs(settings.resolved_blob_url), "worker_test").run(stage)
    failed = study_of(database, study)
    assert failed.state == StudyState.FAILED.value
    assert failed.error is not None
    assert (failed.error["category"], failed.error["code"]) == ("user", "dataset_deleted")
    assert failed.error["hint"]
    problem(http.post("/v1/studies", json=study_body(upload_model(http), dataset=dataset)), 410, "dataset_deleted")


def claims_of(database: Database, study: str) -> str:
    from tests.contracts.test_stage_claims import stages_of

    return stages_of(database, study)["check"].id


def test_a_dataset_expires_when_no_study_needs_it(http: httpx.Client, database: Database) -> None:
    assert upload_dataset(http, content=b"PK\x03\x04for ever")["expires_at"] is None
    short = upload_dataset(http, "?days=1")
    longer = upload_dataset(http, "?days=2")
    assert longer["id"] == short["id"]
    assert longer["expires_at"] > short["expires_at"] > short["created_at"]
    assert upload_dataset(http, "?days=1")["expires_at"] == longer["expires_at"], "never sooner than promised"
    study = post_study(http, dataset=short["id"])

    def round_of_the_reaper() -> int:
        with database.write() as session:
            session.execute(
                update(DatasetRow).where(DatasetRow.id == short["id"]).values(expires_at=database_now() - 1)
            )
            return expire_datasets(session)

    assert round_of_the_reaper() == 0, "a study still needs it"
    problem(http.post("/v1/studies", json=study_body(study["model"], dataset=short["id"])), 410, "dataset_deleted")
    http.post(f"/v1/studies/{study['id']}/cancel")
    assert round_of_the_reaper() == 1
    problem(http.get(f"/v1/datasets/{short['id']}"), 410, "dataset_deleted")
    assert len(http.get("/v1/datasets").json()["items"]) == 1
    back = http.post("/v1/datasets", files={"file": ("d.npz", NPZ)})
    assert (back.status_code, back.json()["id"], back.json()["expires_at"]) == (201, short["id"], None)


@pytest.mark.parametrize("days", ["0", "-1", "nan", "inf", "1e9"])
def test_a_lifetime_must_make_sense(http: httpx.Client, days: str) -> None:
    problem(http.post(f"/v1/datasets?days={days}", files={"file": ("d.npz", NPZ)}), 422, "invalid_request")


def test_asking_whether_a_file_is_known(http: httpx.Client) -> None:
    upload_model(http)
    (model,) = http.get("/v1/models").json()["items"]
    assert http.get(f"/v1/models?sha256={model['sha256']}").json()["items"] == [model]
    assert http.get(f"/v1/models?sha256={'0' * 64}").json()["items"] == []
    problem(http.get("/v1/models?sha256=abc"), 422, "invalid_request")
    dataset = upload_dataset(http)
    assert http.get(f"/v1/datasets?sha256={dataset['sha256']}").json()["items"] == [dataset]


def test_layers_are_known_after_a_check(http: httpx.Client, settings: Settings, database: Database) -> None:
    study = post_study(http)
    address = f"/v1/models/{study['model']}/layers"
    problem(http.get(address), 409, "not_checked")
    graph = {
        "sha256": "0", "opset": 18, "notes": ["BatchNorm is folded"], "samples": 9,
        "layers": [{"name": "<b>conv1", "kind": "conv", "weights": 864, "unquantized_reason": None}],
        "unquantized": [{"node": "add", "op_type": "Add", "reason": "no weights"}],
    }  # fmt: skip
    path = settings.upload_folder / "graph.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(graph))
    blob = Blobs(settings.resolved_blob_url).adopt(path)
    held = claimed(database, study["id"], "check")
    output = OutputFile("graph.json", blob.sha256, blob.size_bytes, "application/json")
    assert claims.succeed(database, held, outputs=[output], summary={})
    found = http.get(address).json()
    assert (found["study"], found["opset"], found["notes"]) == (study["id"], 18, graph["notes"])
    assert (found["layers"], found["unquantized"]) == (graph["layers"], graph["unquantized"])
    problem(http.get("/v1/models/nothing/layers"), 404, "not_found")
