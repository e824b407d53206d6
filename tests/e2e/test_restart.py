"""Ending `bitwright-server up` in the middle of a study, and starting it again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import bitwright
from tests.e2e.running import begun, server, submit, write_model


def test_ending_leaves_no_process_and_the_next_start_goes_on(tmp_path: Path) -> None:
    data_folder = tmp_path / "data"
    model_file = write_model(tmp_path / "net.onnx")
    with server(data_folder) as first, bitwright.Client(first.url) as client:
        once = str(tmp_path / "once")
        study = submit(client, model_file, kind="check", how="sleep", seconds=600, once=once)
        begun(client, study, Path(once))
    left = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert str(data_folder) not in left
    with server(data_folder) as second, bitwright.Client(second.url) as client:
        done = client.wait(study.id, timeout_s=60)
        kinds = [event["kind"] for event in client.events(study.id)]
    assert done.succeeded
    assert kinds.count("stage_put_back") == 1
    assert done.raw["stages"][0]["attempt"] == 1, "a shutdown is no failed attempt"
