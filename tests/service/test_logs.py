"""Logs: one JSON object per line with the ids of the request or stage it belongs to, or a line for people."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.logs import configure_logging, log_ids
from service.settings import Settings
from tests.service.stack import study_body, upload_model


@pytest.fixture(autouse=True)
def _root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_json_lines_carry_ids_and_extras(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    configure_logging(Settings(data_folder=tmp_path, log_format="json"), "worker")
    log = logging.getLogger("some.where")
    with log_ids(study_id="study_1"):
        with log_ids(stage_id="stage_1"):
            log.warning("attempt %d", 2, extra={"status": 7})
        log.info("%s", 'a "quoted"\nname')
    log.info("alone")
    first, second, third = lines(capsys)
    assert first["time"].endswith("+00:00")  # type: ignore[attr-defined]
    del first["time"]
    assert first == {
        "level": "WARNING", "process": "worker", "logger": "some.where", "message": "attempt 2",
        "study_id": "study_1", "stage_id": "stage_1", "status": 7,
    }  # fmt: skip
    assert second["message"] == 'a "quoted"\nname'
    assert "stage_id" not in second
    assert "study_id" not in third


def test_text_lines_end_with_the_ids(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    configure_logging(Settings(data_folder=tmp_path), "api")
    with log_ids(request_id="r1"):
        logging.getLogger("x").info("hello")
    assert capsys.readouterr().err.rstrip().endswith("INFO api x: hello request_id=r1")


def test_configuring_twice_writes_once_and_the_level_holds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for _ in range(2):
        configure_logging(Settings(data_folder=tmp_path, log_format="json", log_level="WARNING"), "api")
    logging.getLogger("x").info("not this")
    logging.getLogger("x").warning("this")
    assert [line["message"] for line in lines(capsys)] == ["this"]


def test_ids_do_not_leak_between_threads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    configure_logging(Settings(data_folder=tmp_path, log_format="json"), "api")
    with log_ids(request_id="r1"):
        thread = threading.Thread(target=lambda: logging.getLogger("x").info("other"))
        thread.start()
        thread.join()
    assert "request_id" not in lines(capsys)[0]


def test_requests_are_logged_with_their_ids(
    http: httpx.Client, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(settings.model_copy(update={"log_format": "json"}), "api")
    study = http.post("/v1/studies", json=study_body(upload_model(http))).json()["id"]
    answer = http.get(f"/v1/studies/{study}", headers={"X-Request-ID": "mine"})
    http.get(f"/v1/studies/{study}", headers={"If-None-Match": answer.headers["etag"]})
    logged = [line for line in lines(capsys) if line["logger"] == "service.requests"]
    (seen,) = [line for line in logged if line.get("request_id") == "mine"]
    assert (seen["route"], seen["status"], seen["study_id"]) == ("/v1/studies/{study_id}", 200, study)
    assert [line["status"] for line in logged] == [201, 201, 200], "a poll that finds nothing new is not worth a line"
