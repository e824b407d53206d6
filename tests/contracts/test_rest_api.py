"""The REST contract over a socket, on SQLite and on PostgreSQL."""

from __future__ import annotations

import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.settings import Settings
from service.store.database import Database
from tests.contracts.test_stage_claims import ERROR, claimed, finish
from tests.service.stack import ONNX_BYTES, SentMessages, study_body, upload_model
from workers import claims
from workers.claims import OutputFile

PROBLEM_FIELDS = {
    "type", "title", "status", "detail", "instance", "code", "hint", "request_id", "retryable", "retry_after_s",
    "errors",
}  # fmt: skip


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document of an answer, which must have this status and code."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == PROBLEM_FIELDS
    assert body["code"] == code
    assert body["hint"]
    assert body["status"] == status
    assert body["request_id"] == answer.headers["x-request-id"]
    return dict(body)


def post_study(http: httpx.Client, **changes: Any) -> dict[str, Any]:
    answer = http.post("/v1/studies", json=study_body(upload_model(http), **changes))
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def publish(settings: Settings, study_id: str, files: dict[str, bytes]) -> None:
    """Carry a study to its end by hand, its evaluate stage publishing these files."""
    from service.blobs import Blobs

    blobs = Blobs(settings.resolved_blob_url)
    outputs = []
    for name, content in files.items():
        path = settings.upload_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        blob = blobs.adopt(path)
        kind = "text/html" if name.endswith(".html") else "application/json"
        outputs.append(OutputFile(name, blob.sha256, blob.size_bytes, kind))
    database = Database(settings.resolved_database_url)
    for name in ("check", "scan0", "measure0", "solve0"):
        finish(database, study_id, name)
    held = claimed(database, study_id, "evaluate0")
    verdicts = [{"hardware": "tiny-cpu", "verdict": "chosen"}]
    assert claims.succeed(database, held, outputs=outputs, summary={"verdicts": verdicts})
    database.close()


def test_uploading_a_model(http: httpx.Client, settings: Settings) -> None:
    first = http.post("/v1/models", files={"file": ("../../net.onnx", ONNX_BYTES)})
    assert first.status_code == 201
    model = first.json()
    assert model["name"] == "net.onnx"
    assert model["size_bytes"] == len(ONNX_BYTES)
    assert first.headers["location"] == f"/v1/models/{model['id']}"
    assert http.get(first.headers["location"]).json() == model
    again = http.post("/v1/models", files={"file": ("other-name.onnx", ONNX_BYTES)})
    assert again.status_code == 200
    assert again.json()["id"] == model["id"]
    files = [("file", ("net.onnx", ONNX_BYTES)), ("external_data", ("net.onnx.data", b"weights"))]
    external = http.post("/v1/models", files=files).json()
    assert [file["name"] for file in external["files"]] == ["model.onnx", "net.onnx.data"]
    assert external["id"] != model["id"]
    assert [one["id"] for one in http.get("/v1/models").json()["items"]] == [external["id"], model["id"]]
    assert list(settings.upload_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"PK\x03\x04torchscript", 415, "model_format_unsupported"),
        (b"\x80\x04\x95pickle", 415, "model_format_unsupported"),
        (b"\x89HDF\r\n", 415, "model_format_unsupported"),
        (b"\x1c\x00\x00\x00TFL3rest", 415, "model_format_unsupported"),
        (b"", 422, "empty_upload"),
    ],
)
def test_models_that_are_refused_by_their_first_bytes(
    http: httpx.Client, settings: Settings, content: bytes, status: int, code: str
) -> None:
    problem(http.post("/v1/models", files={"file": ("m.onnx", content)}), status, code)
    assert http.get("/v1/models").json()["items"] == []
    assert list(settings.upload_folder.iterdir()) == []


@pytest.mark.parametrize("names", [["model.onnx"], ["dataset.npz"], ["graph.json"], ["w.data", "w.data"]])
def test_external_data_cannot_take_the_name_of_another_file(http: httpx.Client, names: list[str]) -> None:
    files = [("file", ("net.onnx", ONNX_BYTES)), *(("external_data", (name, b"weights")) for name in names)]
    problem(http.post("/v1/models", files=files), 422, "external_data_name")


def test_uploading_a_dataset(http: httpx.Client) -> None:
    header = b'{"x":{}}'
    tensors = len(header).to_bytes(8, "little") + header
    assert http.post("/v1/datasets", files={"file": ("d.npz", b"PK\x03\x04data")}).json()["format"] == "npz"
    made = http.post("/v1/datasets", files={"file": ("d.safetensors", tensors)})
    assert made.json()["format"] == "safetensors"
    assert http.get(made.headers["location"]).json() == made.json()
    assert len(http.get("/v1/datasets").json()["items"]) == 2
    problem(http.post("/v1/datasets", files={"file": ("d.npy", b"\x93NUMPY")}), 415, "dataset_format_unsupported")


def test_broken_uploads(http: httpx.Client, settings: Settings) -> None:
    problem(http.post("/v1/models", content=b"x"), 415, "multipart_expected")
    problem(http.post("/v1/models", files={"wrong": ("m", b"\x08x")}), 422, "invalid_request")
    problem(http.post("/v1/models", data={"file": "no file"}, files={"file": ("m", b"x")}), 422, "invalid_request")
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="m"\r\n\r\n'
    problem(http.post("/v1/models", content=head + b"\x08cut", headers=headers), 400, "malformed_multipart")
    problem(http.post("/v1/models", content=b"no boundary at all", headers=headers), 400, "malformed_multipart")
    assert list(settings.upload_folder.iterdir()) == []


def test_unknown_things_are_404(http: httpx.Client) -> None:
    for path in ("models/x", "datasets/x", "studies/x", "artifacts/x", "hardware-profiles/x", "studies/x/events", "x"):
        problem(http.get(f"/v1/{path}"), 404, "not_found")
    problem(http.get("/studies/study_x"), 404, "not_found")
    problem(http.get("/static/none.js"), 404, "not_found")
    problem(http.post("/v1/studies/x/cancel"), 404, "not_found")
    for path, allowed in (("/v1/models", "GET, POST"), ("/v1/studies/x/cancel", "POST"), ("/healthz", "GET")):
        answer = http.delete(path)
        problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == allowed


def test_submitting_a_study(http: httpx.Client, messages: SentMessages) -> None:
    answer = http.post("/v1/studies", json=study_body(upload_model(http), name="first"))
    assert answer.status_code == 201
    study = answer.json()
    assert answer.headers["location"] == f"/v1/studies/{study['id']}"
    assert (study["state"], study["is_terminal"], study["name"]) == ("queued", False, "first")
    assert [stage["kind"] for stage in study["stages"]] == ["check", "scan", "measure", "solve", "evaluate"]
    assert study["spec"]["targets"][0]["operating_point"] == {"batch": None, "threads": 1, "dims": {}}
    assert http.get(answer.headers["location"]).json() == study, "what was answered is committed"
    deadline = time.monotonic() + 5
    while not messages.sent and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [queue for _, queue in messages.sent] == ["check"]


def test_a_dead_broker_does_not_refuse_a_study(http: httpx.Client, messages: SentMessages) -> None:
    messages.broken = True
    assert post_study(http)["state"] == "queued"


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"targets": []}, "/targets"),
        ({"targets": [{"hardware": "tiny-cpu"}]}, "/targets/0"),
        ({"targets": [{"hardware": "../x", "budgets": {"bops": 1.0}}]}, "/targets/0/hardware"),
        ({"targets": [{"hardware": "tiny-cpu", "budgets": {"watts": 1}}]}, "/targets/0/budgets/watts"),
        ({"targets": [{"hardware": "tiny-cpu", "budgets": {"bops": -1}}]}, "/targets/0/budgets/bops"),
        ({"targets": [{"hardware": "tiny-cpu", "budgets": {"bops": "fast"}}]}, "/targets/0/budgets/bops"),
        ({"targets": [{"hardware": "tiny-cpu", "budgets": {"bops": 1.0}, "tolerance": {"loss": 1.0}}]}, "/targets/0"),
        ({"targets": [{"hardware": "tiny-cpu", "budgets": {"bops": {"relative": 2}}}]}, "/targets/0/budgets/bops"),
        ({"targets": [{"hardware": "tiny-cpu", "budgets": {"bops": True}}]}, "/targets/0/budgets/bops"),
        ({"seed": "many"}, "/seed"),
        ({"surprise": 1}, "/surprise"),
    ],
)
def test_malformed_studies(http: httpx.Client, change: dict[str, Any], pointer: str) -> None:
    found = problem(http.post("/v1/studies", json={**study_body("model_x"), **change}), 422, "invalid_request")
    assert any(error["pointer"].startswith(pointer) for error in found["errors"]), found["errors"]


@pytest.mark.parametrize("budget", [0.5, 1000, "0.6x", "12.5", {"relative": 0.5}])
def test_every_way_to_write_a_budget(http: httpx.Client, budget: Any) -> None:
    study = post_study(http, targets=[{"hardware": "tiny-cpu", "budgets": {"size_bytes": budget}}])
    assert study["spec"]["targets"][0]["budgets"] == {"size_bytes": budget}


def test_studies_of_unknown_things(http: httpx.Client) -> None:
    model = upload_model(http)
    problem(http.post("/v1/studies", json=study_body("model_none")), 404, "model_unknown")
    problem(http.post("/v1/studies", json=study_body(model, dataset="dataset_none")), 404, "dataset_unknown")
    targets = [{"hardware": "abacus", "budgets": {"bops": 1.0}}]
    found = problem(http.post("/v1/studies", json=study_body(model, targets=targets)), 404, "hardware_unknown")
    assert "tiny-cpu" in found["hint"]
    assert found["errors"][0]["pointer"] == "/targets/0/hardware"
    headers = {"Content-Type": "application/json"}
    problem(http.post("/v1/studies", content=b"{oops", headers=headers), 400, "malformed_json")
    problem(http.post("/v1/studies", content=b'{"a":"' + b"x" * (1 << 21) + b'"}', headers=headers), 413, "too_large")


def test_an_idempotency_key_makes_one_study(http: httpx.Client) -> None:
    body, headers = study_body(upload_model(http)), {"Idempotency-Key": "one"}
    first = http.post("/v1/studies", json=body, headers=headers)
    again = http.post("/v1/studies", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = http.post("/v1/studies", json={**body, "seed": 1}, headers=headers)
    problem(other, 422, "idempotency_key_reused")
    assert len(http.get("/v1/studies").json()["items"]) == 1


def test_parallel_posts_with_one_key_make_one_study(http: httpx.Client) -> None:
    body, start = study_body(upload_model(http)), threading.Barrier(6)

    def send(_: int) -> httpx.Response:
        start.wait()
        return httpx.post(f"{http.base_url}/v1/studies", json=body, headers={"Idempotency-Key": "race"}, timeout=30)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(send, range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_polling_with_an_etag(http: httpx.Client, database: Database) -> None:
    study = post_study(http)
    address = f"/v1/studies/{study['id']}"
    seen = http.get(address)
    assert seen.headers["retry-after"] == "2"
    unchanged = http.get(address, headers={"If-None-Match": seen.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert unchanged.headers["etag"] == seen.headers["etag"]
    claimed(database, study["id"], "check")
    changed = http.get(address, headers={"If-None-Match": seen.headers["etag"]})
    assert changed.status_code == 200
    assert (changed.json()["state"], changed.json()["stage"]) == ("running", "check")
    assert changed.headers["etag"] != seen.headers["etag"]


def test_waiting_for_a_change(http: httpx.Client, database: Database) -> None:
    study = post_study(http)
    address = f"/v1/studies/{study['id']}"
    etag = http.get(address).headers["etag"]
    begun = time.monotonic()
    idle = http.get(f"{address}?wait=0.6", headers={"If-None-Match": etag})
    assert idle.status_code == 304
    assert time.monotonic() - begun >= 0.6
    timer = threading.Timer(0.3, lambda: claimed(database, study["id"], "check"))
    timer.start()
    begun = time.monotonic()
    changed = http.get(f"{address}?wait=20", headers={"If-None-Match": etag})
    timer.join()
    assert changed.json()["state"] == "running"
    assert time.monotonic() - begun < 10


def test_progress_and_what_a_study_waits_for(http: httpx.Client, database: Database) -> None:
    targets = [{"hardware": "tiny-gpu", "budgets": {"bops": 1.0}}]
    study = post_study(http, targets=targets)
    address = f"/v1/studies/{study['id']}"
    assert study["waiting_for"] is None
    held = claimed(database, study["id"], "check")
    claims.beat(database, held, lease_s=60, progress={"done": 1, "total": 4, "unit": "layers", "message": "conv1"})
    progress = http.get(address).json()["progress"]
    assert (progress["done"], progress["total"], progress["unit"]) == (1, 4, "layers")
    assert progress["eta_s"] >= 0
    assert claims.succeed(database, held, outputs=[], summary={})
    finish(database, study["id"], "scan0")
    with database.write() as session:
        from service.store.fleet import worker_gone

        worker_gone(session, "worker_test")
    waiting = http.get(address)
    assert waiting.json()["waiting_for"]["queue"] == "measure.tiny-gpu"
    assert not http.get("/v1/hardware-profiles/tiny-gpu").json()["live"]


def test_cancelling(http: httpx.Client) -> None:
    study = post_study(http)
    cancel = f"/v1/studies/{study['id']}/cancel"
    first = http.post(cancel)
    assert (first.status_code, first.json()["state"], first.json()["is_terminal"]) == (202, "cancelled", True)
    assert http.post(cancel).status_code == 202, "asking twice is asking once"
    assert "retry-after" not in http.get(f"/v1/studies/{study['id']}").headers


def test_a_finished_study_cannot_be_cancelled(http: httpx.Client, settings: Settings) -> None:
    study = post_study(http)
    publish(settings, study["id"], {"report.json": b"{}"})
    problem(http.post(f"/v1/studies/{study['id']}/cancel"), 409, "state_conflict")


def test_a_failed_study_says_whose_fault_it_was(http: httpx.Client, database: Database) -> None:
    study = post_study(http)
    assert claims.fail(database, claimed(database, study["id"], "check"), ERROR)
    found = http.get(f"/v1/studies/{study['id']}").json()
    assert found["state"] == "failed"
    assert found["error"] == ERROR
    assert [stage["state"] for stage in found["stages"]] == ["failed", *["cancelled"] * 4]
    problem(http.get(f"/v1/studies/{study['id']}/report"), 409, "not_ready")


def test_what_a_finished_study_offers(http: httpx.Client, settings: Settings) -> None:
    study = post_study(http)
    address = f"/v1/studies/{study['id']}"
    early = problem(http.get(f"{address}/front"), 409, "not_ready")
    assert early["retryable"]
    page = b"<script>alert(1)</script>"
    front = [{"front": [{"cost": 1.0, "loss": 0.5}]}]
    files = {"report.json": b'{"a": 1}', "front.json": json.dumps(front).encode(), "report.html": page}
    publish(settings, study["id"], files)
    assert http.get(f"{address}/report").json() == {"a": 1}
    assert http.get(f"{address}/front").json() == front
    html = http.get(f"{address}/report?format=html")
    assert html.content == page
    assert html.headers["content-security-policy"].startswith("sandbox")
    problem(http.get(f"{address}/report?target=7"), 404, "not_found")
    assert http.get(address).json()["verdicts"] == [{"hardware": "tiny-cpu", "verdict": "chosen"}]
    artifacts = http.get(f"{address}/artifacts").json()["items"]
    assert [artifact["name"] for artifact in artifacts] == ["front.json", "report.html", "report.json"]
    events = http.get(f"{address}/events").json()["items"]
    assert events[0]["kind"] == "created"
    assert events[-1]["data"]["to"] == "succeeded"
    assert http.get(f"{address}/events?after={events[-2]['seq']}").json()["items"] == events[-1:]


def test_downloading_ranges(http: httpx.Client, settings: Settings) -> None:
    study, content = post_study(http), bytes(range(256)) * 8
    publish(settings, study["id"], {"artifact_0.onnx": content})
    artifact = http.get(f"/v1/studies/{study['id']}/artifacts").json()["items"][0]
    whole = http.get(artifact["href"])
    assert whole.content == content
    assert whole.headers["etag"] == f'"{artifact["sha256"]}"'
    assert "attachment" in whole.headers["content-disposition"]
    for asked, expected in [
        ("bytes=0-9", content[:10]), ("bytes=2000-", content[2000:]), ("bytes=-5", content[-5:]),
        ("bytes=2040-99999", content[2040:]),
    ]:  # fmt: skip
        part = http.get(artifact["href"], headers={"Range": asked})
        assert (part.status_code, part.content) == (206, expected)
        assert part.headers["content-range"].endswith(f"/{len(content)}")
    for ignored in ("bytes=0-1,4-5", "lines=1-2", "bytes=-", "bytes=9-3"):
        assert http.get(artifact["href"], headers={"Range": ignored}).status_code == 200
    other = http.get(artifact["href"], headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert other.status_code == 200
    outside = http.get(artifact["href"], headers={"Range": "bytes=9999-"})
    problem(outside, 416, "range_not_satisfiable")
    assert outside.headers["content-range"] == f"bytes */{len(content)}"


def test_lists_are_paged_and_filtered(http: httpx.Client) -> None:
    model = upload_model(http)
    ids = []
    for hardware in ("tiny-cpu", "tiny-gpu") * 2:
        targets = [{"hardware": hardware, "budgets": {"bops": 1.0}}]
        ids.append(http.post("/v1/studies", json=study_body(model, targets=targets)).json()["id"])
    http.post(f"/v1/studies/{ids[0]}/cancel")
    found: list[str] = []
    cursor = ""
    while cursor is not None:
        page = http.get(f"/v1/studies?limit=3{f'&cursor={cursor}' if cursor else ''}").json()
        found += [one["id"] for one in page["items"]]
        cursor = page["next_cursor"]
    assert found == ids[::-1]

    def listed(query: str) -> set[str]:
        return {one["id"] for one in http.get(f"/v1/studies?{query}").json()["items"]}

    assert listed("hardware=tiny-gpu") == {ids[1], ids[3]}
    assert listed("state=cancelled") == {ids[0]}
    assert listed("state=cancelled&state=queued") == set(ids)
    assert listed("model=model_other") == set()
    problem(http.get("/v1/studies?cursor=rubbish"), 422, "bad_cursor")
    problem(http.get("/v1/studies?limit=0"), 422, "invalid_request")


def test_strangers_are_kept_out(http: httpx.Client) -> None:
    problem(http.get("/v1/models", headers={"Host": "evil.example"}), 400, "host_not_allowed")
    form = {"file": ("m", ONNX_BYTES)}
    problem(http.post("/v1/models", files=form, headers={"Origin": "https://evil.example"}), 403, "cross_site")
    own = f"http://127.0.0.1:{http.base_url.port}"
    assert http.post("/v1/models", files=form, headers={"Origin": own}).status_code == 201


def test_health(http: httpx.Client) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    ready = http.get("/readyz").json()
    assert (ready["ready"], ready["schema_current"]) == (True, True)
    assert [worker["sandbox"] for worker in ready["workers"]] == ["rlimits"]


def test_every_operation_declares_problems(http: httpx.Client) -> None:
    openapi = http.get("/openapi.json").json()
    assert openapi["openapi"].startswith("3.1")
    operations = [operation for path in openapi["paths"].values() for operation in path.values()]
    assert len(operations) >= 18
    for operation in operations:
        for status in ("400", "404", "409", "413", "415", "422", "500"):
            assert operation["responses"][status] == {"$ref": f"#/components/responses/Problem{status}"}
            declared = openapi["components"]["responses"][f"Problem{status}"]
            assert list(declared["content"]) == ["application/problem+json"]
    assert "HTTPValidationError" not in json.dumps(openapi)


def test_pages_show_hostile_names_as_text(http: httpx.Client) -> None:
    hostile = "<script>alert(1)</script>"
    study = post_study(http, name=hostile)
    for path in ("/", f"/studies/{study['id']}"):
        page = http.get(path)
        assert page.status_code == 200
        assert hostile not in page.text
        assert "&lt;script&gt;" in page.text
        assert "default-src 'self'" in page.headers["content-security-policy"]


def test_an_oversize_upload_is_stopped(database_url: str, tmp_path: Path, messages: SentMessages) -> None:
    from tests.service.stack import quick_settings, serving

    small = quick_settings(tmp_path / "small", database_url, upload_limit_bytes=100_000)
    with serving(small, messages) as client:
        answer = client.post("/v1/models", files={"file": ("m.onnx", io.BytesIO(b"\x08" * 300_000))})
        problem(answer, 413, "too_large")
        assert list(small.upload_folder.glob("*")) == []
        assert client.get("/v1/models").json()["items"] == []
