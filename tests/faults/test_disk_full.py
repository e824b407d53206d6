"""A full disk, for real: a server whose data folder is a file system of a few megabytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.running_stack import ROOT, wait_until
from tests.faults.servers import free_port
from tests.service.stack import quick_settings, study_body

DISK_BYTES = 24 << 20
MODEL_BYTES = 9 << 20
MOUNT = f'mount -t tmpfs -o size={DISK_BYTES} tmpfs "$0" && exec "$@"'
PREFIX = ("unshare", "--map-root-user", "--mount", "sh", "-c", MOUNT)


def can_mount(folder: Path) -> bool:
    try:
        return subprocess.run([*PREFIX, str(folder), "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("disk")
    if not can_mount(folder):
        pytest.skip("this machine does not let tests mount a small file system")
    settings = quick_settings(folder, "", port=free_port())
    log = folder.with_suffix(".log")
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [*PREFIX, str(folder), sys.executable, "-m", "workers.server_cli", "up"],
            cwd=ROOT,
            env={**os.environ, **settings.as_environment(), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until("the server is up", lambda: b"Bitwright is up" in log.read_bytes(), 60)
        with httpx.Client(base_url=f"http://127.0.0.1:{settings.port}", timeout=30) as found:
            yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def upload(client: httpx.Client, size_bytes: int) -> httpx.Response:
    content = b"\x08\x0a" + os.urandom(size_bytes)
    return client.post("/v1/models", files={"file": ("net.onnx", content)})


def ended(client: httpx.Client, study_id: str) -> dict[str, object]:
    deadline = time.monotonic() + 60
    while not (study := client.get(f"/v1/studies/{study_id}").json())["is_terminal"]:
        assert time.monotonic() < deadline, study
        time.sleep(0.1)
    return dict(study)


def test_a_full_disk_refuses_uploads_fails_stages_clearly_and_serves_on(client: httpx.Client) -> None:
    small = upload(client, 1000).json()["id"]
    large = [upload(client, MODEL_BYTES) for _ in range(2)]
    assert [answer.status_code for answer in large] == [201, 201]
    refused = upload(client, MODEL_BYTES)
    assert (refused.status_code, refused.json()["code"]) == (507, "storage_full")
    assert len(client.get("/v1/models").json()["items"]) == 3, "nothing half-written"

    # A stage needs a private copy of its model, for which there is no room.
    study_id = client.post("/v1/studies", json=study_body(large[0].json()["id"])).json()["id"]
    study = ended(client, study_id)
    assert study["state"] == "failed"
    assert isinstance(study["error"], dict)
    assert (study["error"]["category"], study["error"]["code"]) == ("infrastructure", "disk_full")

    # The failed upload and the failed stage left nothing behind: what fits still works.
    study_id = client.post("/v1/studies", json=study_body(small)).json()["id"]
    assert ended(client, study_id)["state"] == "succeeded"
