"""Hardware profiles, latency tables and workers over a socket, on SQLite and on PostgreSQL."""

from __future__ import annotations

import copy
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from kernels.backends.cpu_profiles import openvino_bf16_profile
from kernels.device_identity import DeviceIdentity
from kernels.latency_table import LatencyTable
from kernels.profiles import shipped_names
from kernels.registry import load_profile
from service.hardware_profiles.profiles import enter_shipped_profiles
from service.hardware_profiles.schemas import ProfileBody
from service.hardware_profiles.tables import append_table, known_table
from service.store.database import Database
from service.store.fleet import announce_worker
from service.store.models import HardwareProfileRow
from tests.contracts.test_rest_api import post_study, problem
from tests.contracts.test_stage_claims import claimed

CONV = "conv2d_n1_c64_h56_w56_o64_k3x3_s1x1_p1x1x1x1_d1x1_g1_b1"
NUMERICS = {"bits": 8, "symmetric": True, "signed": True, "granularity": "channel"}


def profile_body(**changes: Any) -> dict[str, Any]:
    """A phone nobody's worker runs on."""
    return {
        "schema_version": 1,
        "slug": "my-phone",
        "device": {"kind": "cpu", "name": "Kryo 585", "cores": 8, "memory_bytes": 1 << 33, "isa": ["dotprod"]},
        "runtime": "onnxruntime_cpu",
        "runtime_version": "1.32.0",
        "support": [
            {"op": "conv2d", "precision": "w8a8", "kernel": "QLinearConv"},
            {"op": "linear", "precision": "w8a8", "kernel": "QGemm"},
        ],
        "recipes": [
            {
                "op": "conv2d",
                "precision": "w8a8",
                "recipe": {"name": "c", "weight": NUMERICS, "activation": NUMERICS, "output_quantized": True},
            }
        ],
        "session_options": {"session.intra_op": "1"},
        **changes,
    }


def row(precision: str = "w8a8", median: float = 10.0, **changes: Any) -> dict[str, Any]:
    return {
        "signature": CONV, "precision": precision, "threads": 1, "median_us": median, "ci_low_us": median * 0.9,
        "ci_high_us": median * 1.1, "p05_us": median * 0.8, "p95_us": median * 1.2, "samples": 30,
        "status": "measured", "scope": "deployable", "executed_kernel": "QLinearConv", "run": "first", **changes,
    }  # fmt: skip


def table_body(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    profile = profile_body()
    return {
        "schema_version": 1,
        "profile": "cpu-local",
        "device": profile["device"],
        "runtime": profile["runtime"],
        "runtime_version": profile["runtime_version"],
        "version": 1,
        "runs": {"first": {"clock": "performance"}, "second": {"clock": "performance"}},
        "rows": list(rows or [row("fp32", 30.0), row("w8a8", 10.0)]),
        **changes,
    }


@pytest.fixture
def phone(http: httpx.Client) -> httpx.Client:
    """A client of a server that knows the phone."""
    assert http.post("/v1/hardware-profiles", json=profile_body()).status_code == 201
    return http


@pytest.mark.parametrize("name", ["cpu-local", "cpu-local-openvino", "fake", *shipped_names()])
def test_every_profile_that_kernels_names_is_taken(name: str) -> None:
    ProfileBody.model_validate(load_profile(name).to_json())


def test_a_cpu_that_serves_full_precision_in_bf16_is_taken() -> None:
    cpu = DeviceIdentity("cpu", "with bf16", 4, 1 << 33, isa=("avx512_vnni", "avx512_bf16"), os="Linux x86_64")
    ProfileBody.model_validate(openvino_bf16_profile(cpu).to_json())


TABLES = "/v1/hardware-profiles/my-phone/latency-tables"


def test_describing_hardware(http: httpx.Client) -> None:
    made = http.post("/v1/hardware-profiles", json=profile_body())
    assert (made.status_code, made.headers["location"]) == (201, "/v1/hardware-profiles/my-phone")
    view = made.json()
    assert (view["source"], view["live"], view["table"], view["announced_at"]) == ("user", False, None, None)
    assert http.get(made.headers["location"]).json() == view
    assert http.post("/v1/hardware-profiles", json=profile_body()).status_code == 200, "the same again"
    other = profile_body(runtime_version="1.33.0")
    problem(http.post("/v1/hardware-profiles", json=other), 409, "profile_exists")
    replaced = http.put("/v1/hardware-profiles/my-phone", json=other)
    assert (replaced.status_code, replaced.json()["profile"]["runtime_version"]) == (200, "1.33.0")
    study = post_study(http, targets=[{"hardware": "my-phone", "budgets": {"bops": 1.0}}])
    assert study["hardware"] == ["my-phone"]
    problem(http.delete("/v1/hardware-profiles/my-phone"), 409, "in_use")
    assert http.put("/v1/hardware-profiles/spare", json=profile_body(slug="spare")).status_code == 201
    assert http.delete("/v1/hardware-profiles/spare").status_code == 204
    problem(http.get("/v1/hardware-profiles/spare"), 404, "not_found")
    problem(http.delete("/v1/hardware-profiles/spare"), 404, "not_found")


def test_other_peoples_profiles_stay(http: httpx.Client, database: Database) -> None:
    for slug in ("tiny-cpu", "t4"):
        problem(http.post("/v1/hardware-profiles", json=profile_body(slug=slug)), 409, "profile_exists")
        problem(http.put(f"/v1/hardware-profiles/{slug}", json=profile_body(slug=slug)), 409, "profile_exists")
        problem(http.delete(f"/v1/hardware-profiles/{slug}"), 409, "profile_exists")
    with database.write() as session:
        announce_worker(
            session, worker_id="w", host="h", version="0", queues=[], sandbox="off", profiles=[{"slug": "t4"}]
        )
        assert enter_shipped_profiles(session) == 0, "what a worker found on the device wins over what is shipped"
    assert http.get("/v1/hardware-profiles/t4").json()["source"] == "worker"


def test_shipped_profiles_are_there(http: httpx.Client, database: Database) -> None:
    listed = {one["slug"]: one["source"] for one in http.get("/v1/hardware-profiles").json()["items"]}
    assert {slug for slug, source in listed.items() if source == "shipped"} == set(shipped_names())
    assert listed["tiny-cpu"] == "worker"
    with database.write() as session:
        session.get_one(HardwareProfileRow, "h100").profile_key = "of an older version"
        session.flush()
        assert enter_shipped_profiles(session) == 1


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"slug": "../etc"}, "/slug"),
        ({"slug": "x"}, "/slug"),
        ({"surprise": 1}, "/surprise"),
        ({"schema_version": 2}, "/schema_version"),
        ({"support": []}, "/support"),
        ({"support": [{"op": "conv2d", "precision": "w8a8"}]}, "/support/0/kernel"),
        ({"device": {"kind": "cpu"}}, "/device/name"),
        ({"recipes": [{"op": "conv2d", "precision": "w8a8", "recipe": {}}]}, "/recipes/0/recipe/weight"),
        ({"peaks": {"int8": {"value": -1, "unit": "TOPS", "source": "", "quality": ""}}}, "/peaks/int8/value"),
    ],
)
def test_malformed_profiles(http: httpx.Client, change: dict[str, Any], pointer: str) -> None:
    answer = http.post("/v1/hardware-profiles", json=profile_body(**change))
    found = problem(answer, 422, "invalid_request")
    assert any(error["pointer"].startswith(pointer) for error in found["errors"]), found["errors"]
    problem(http.get("/v1/hardware-profiles/my-phone"), 404, "not_found")


def test_a_put_to_another_address(http: httpx.Client) -> None:
    found = problem(http.put("/v1/hardware-profiles/your-phone", json=profile_body()), 422, "invalid_request")
    assert found["errors"][0]["pointer"] == "/slug"


def test_tables_are_appended(phone: httpx.Client) -> None:
    problem(phone.get("/v1/hardware-profiles/my-phone/latency-table"), 404, "not_found")
    first = phone.post(TABLES, json=table_body())
    assert (first.status_code, first.headers["location"]) == (201, f"{TABLES}/1")
    assert (first.json()["version"], first.json()["rows"], first.json()["current"]) == (1, 2, True)
    assert phone.post(TABLES, json=table_body()).status_code == 200, "the same rows again say nothing new"
    grown = table_body(row("fp32", 30.0), row("w8a8", 10.0), row("w8a8", 12.0, run="second"))
    second = phone.post(TABLES, json=grown).json()
    assert (second["version"], second["rows"], list(second["runs"])) == (2, 1, ["second"])
    whole = LatencyTable.from_json(phone.get("/v1/hardware-profiles/my-phone/latency-table").json())
    assert (whole.version, len(whole.rows)) == (2, 3)
    assert {one.precision: one.median_us for one in whole.latest()} == {"fp32": 30.0, "w8a8": 12.0}
    one = phone.get(f"{TABLES}/1").json()
    assert [entry["precision"] for entry in one["rows"]] == ["fp32", "w8a8"]
    problem(phone.get(f"{TABLES}/3"), 404, "not_found")
    page = phone.get(f"{TABLES}?limit=1").json()
    assert [item["version"] for item in page["items"]] == [2]
    rest = phone.get(f"{TABLES}?limit=1&cursor={page['next_cursor']}").json()
    assert ([item["version"] for item in rest["items"]], rest["next_cursor"]) == ([1], None)
    summary = phone.get("/v1/hardware-profiles/my-phone").json()["table"]
    assert (summary["rows"], summary["version"], summary["versions"]) == (3, 2, 2)
    assert summary["rows_by_status"] == {"measured": 3}
    assert summary["age_s"] >= 0
    covered = phone.get("/v1/hardware-profiles/my-phone/coverage").json()
    cells = {(cell["op"], cell["precision"]): (cell["rows"], cell["op_shapes"]) for cell in covered["cells"]}
    assert cells == {("conv2d", "fp32"): (1, 1), ("conv2d", "w8a8"): (2, 1)}
    assert covered["unmeasured"] == ["linear w8a8"]


def test_rows_of_an_earlier_driver_count_no_more(phone: httpx.Client) -> None:
    phone.post(TABLES, json=table_body())
    device = {**profile_body()["device"], "driver": "2"}
    assert phone.put("/v1/hardware-profiles/my-phone", json=profile_body(device=device)).status_code == 200
    problem(phone.get("/v1/hardware-profiles/my-phone/latency-table"), 404, "not_found")
    assert phone.get("/v1/hardware-profiles/my-phone").json()["table"] is None
    assert [one["current"] for one in phone.get(TABLES).json()["items"]] == [False]
    problem(phone.post(TABLES, json=table_body()), 409, "table_device_mismatch")
    newer = phone.post(TABLES, json=table_body(device=device))
    assert (newer.status_code, newer.json()["version"]) == (201, 2)
    assert phone.put("/v1/hardware-profiles/my-phone", json=profile_body()).status_code == 200
    assert phone.get("/v1/hardware-profiles/my-phone").json()["table"]["version"] == 1, "the old driver came back"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"device": {**profile_body()["device"], "name": "Kryo 680"}}, 409, "table_device_mismatch"),
        ({"device": {**profile_body()["device"], "isa": []}}, 409, "table_device_mismatch"),
        ({"runtime_version": "1.31.0"}, 409, "table_runtime_mismatch"),
        ({"runtime": "openvino"}, 409, "table_runtime_mismatch"),
        ({"schema_version": 2}, 422, "table_schema_unsupported"),
        ({"rows": []}, 422, "invalid_request"),
        ({"surprise": 1}, 422, "invalid_request"),
        ({"rows": [row(surprise=1)]}, 422, "invalid_request"),
        ({"rows": [row(median=-1.0)]}, 422, "invalid_request"),
        ({"rows": [row(signature="conv9d_n1")]}, 422, "invalid_request"),
        ({"rows": [row("w99a8")]}, 422, "invalid_request"),
        ({"rows": [row(run="third")]}, 422, "invalid_request"),
        ({"rows": [row(ci_low_us=11.0)]}, 422, "invalid_request"),
    ],
)
def test_refused_tables(phone: httpx.Client, change: dict[str, Any], status: int, code: str) -> None:
    found = problem(phone.post(TABLES, json=table_body(**change)), status, code)
    assert found["detail"]
    assert phone.get(TABLES).json()["items"] == []


def test_a_table_is_no_number(phone: httpx.Client) -> None:
    body = copy.deepcopy(table_body())
    body["rows"][0]["median_us"] = math.nan
    headers = {"Content-Type": "application/json"}
    import json

    problem(phone.post(TABLES, content=json.dumps(body), headers=headers), 422, "invalid_request")
    problem(phone.post("/v1/hardware-profiles/nobody/latency-tables", json=table_body()), 404, "not_found")


def test_parallel_uploads_take_different_versions(phone: httpx.Client) -> None:
    start = threading.Barrier(4)

    def send(index: int) -> httpx.Response:
        start.wait()
        body = table_body(row("w8a8", 10.0 + index))
        return httpx.post(f"{phone.base_url}{TABLES}", json=body, timeout=30)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(send, range(4)))
    assert sorted(answer.json()["version"] for answer in answers) == [1, 2, 3, 4], [a.text for a in answers]


def test_a_stage_adds_only_what_is_new(phone: httpx.Client, database: Database) -> None:
    phone.post(TABLES, json=table_body())
    with database.write() as session:
        profile = session.get_one(HardwareProfileRow, "my-phone")
        known = LatencyTable.from_json(known_table(session, profile))
        measured = known.extended(
            [LatencyTable.from_json(table_body(row("w8a8", 11.0, run="r2"))).rows[0]], "r2", {"threads": 1}
        )
        entered, created = append_table(session, profile, measured, source="study", study_id="study_x")
        assert created
        assert entered is not None
        assert (entered.row_count, entered.runs, entered.study_id) == (1, {"r2": {"threads": 1}}, "study_x")
        assert append_table(session, profile, measured, source="study") == (entered, False)


def test_workers(http: httpx.Client, database: Database) -> None:
    (worker,) = http.get("/v1/workers").json()["items"]
    assert (worker["id"], worker["live"], worker["same_version"], worker["running"]) == ("worker_test", True, True, [])
    study = post_study(http)
    claimed(database, study["id"], "check")
    with database.write() as session:
        announce_worker(session, worker_id="w", host="h", version="0", queues=[], sandbox="off", profiles=[])
    busy = {one["id"]: one for one in http.get("/v1/workers").json()["items"]}["w"]
    assert not busy["same_version"]
    assert [(stage["study"], stage["kind"]) for stage in busy["running"]] == [(study["id"], "check")]
