"""What of a child's output is shown: bounded, readable, without terminal codes and without this machine's folders."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers import stage_child
from workers.child_log import LINE_CHARACTERS, TAIL_BYTES, TAIL_LINES, ChildLog, shown_lines
from workers.stage_child import ProgressPipe, log_to_stderr, run_stage


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        pytest.param(b"one\r\ntwo\n\n", ["one", "two"], id="lines"),
        pytest.param(b"\x1b[1;31mred\x1b[0m \x1b]0;title\x07x\x1b[2K", ["red x"], id="terminal-codes"),
        pytest.param(b" 10%|#   |\r 90%|### |\r100%|####|\n", ["100%|####|"], id="a-bar-that-rewrites-its-line"),
        pytest.param(b"a\x00b\x08\xff\tc", ["ab\ufffd c"], id="what-no-terminal-prints"),
        pytest.param("x\u202eevil\u2028y".encode(), ["xevily"], id="turned-around"),
        pytest.param(b"\n" * 50, [], id="nothing"),
        pytest.param(b"y" * 999, ["y" * (LINE_CHARACTERS - 1) + "…"], id="a-long-line"),
        pytest.param(b'File "/code/search/pipeline.py", line 3', ['File "search/pipeline.py", line 3'], id="code"),
        pytest.param(b"/data/stages/tmp1/files/model.onnx", ["./model.onnx"], id="the-stage's-folder"),
        pytest.param(b"opens /usr/lib/libc.so.6: no", ["opens …/libc.so.6: no"], id="the-machine"),
        pytest.param(b"see file:///usr/share/doc/", ["see file:…/"], id="an-address"),
        pytest.param(b"/layer1/conv1/Conv is in /encoder/attn/MatMul", None, id="names-of-layers"),
    ],
)  # fmt: skip
def test_lines_that_are_shown(printed: bytes, shown: list[str] | None) -> None:
    folders = {"/data/stages/tmp1/files": ".", "/data/stages/tmp1": ".", "/code": ""}
    assert shown_lines(printed, folders) == ([printed.decode()] if shown is None else shown, False)


def test_only_the_end_is_read_and_the_childs_place_in_its_file_stays(tmp_path: Path) -> None:
    with open(tmp_path / "child.log", "w+b") as file:
        log = ChildLog(file, tmp_path, Path("/code"))
        assert log.news(1) is None
        assert log.now(1) is None
        for number in range(3000):
            os.write(file.fileno(), b"line %d\n" % number)
        place = os.lseek(file.fileno(), 0, os.SEEK_CUR)
        found = log.news(2)
        assert found is not None
        lines = found.text.split("\n")
        assert (lines[0], lines[-1]) == (f"line {3000 - TAIL_LINES}", "line 2999")
        assert (found.attempt, found.is_cut, len(found.text.encode()) <= TAIL_BYTES) == (2, True, True)
        assert log.news(2) is None, "nothing new"
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == place == log.size_bytes
        assert log.raw_tail().endswith("line 2999\n")


def test_a_file_without_an_end_of_line_is_shown_by_its_end(tmp_path: Path) -> None:
    with open(tmp_path / "child.log", "w+b") as file:
        os.write(file.fileno(), b"z" * (3 * TAIL_BYTES))
        found = ChildLog(file, tmp_path, Path("/code")).now(1)
        assert found is not None
        assert found.is_cut
        assert len(found.text) == LINE_CHARACTERS


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What this process logs as a child does, as a text."""
    root = logging.getLogger()
    before = list(root.handlers)
    text = io.StringIO()
    monkeypatch.setattr(sys, "stderr", text)
    log_to_stderr()
    yield text
    root.handlers[:] = before
    for name in ("stage", "search", "kernels"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_a_child_logs_what_it_does(tmp_path: Path, printed: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.onnx").write_bytes(b"1234")
    (tmp_path / "stage.json").write_text(json.dumps({"kind": "check", "spec": {"options": {}}}))
    logging.getLogger("torch").info("a library's small talk")
    logging.getLogger("search.scanning").info("ours")
    assert run_stage(tmp_path, "tests.workers.tiny_stages:STAGES", lambda *_: None)["outputs"] == ["graph.json"]
    lines = [line.split("Z ", 1)[1] for line in printed.getvalue().splitlines()]
    assert lines[:2] == ["INFO search.scanning: ours", "INFO stage: check begins"]
    assert lines[2].startswith("INFO stage: check is done after ")
    assert lines[2].endswith(": graph.json")

    reader, writer = os.pipe()
    clock = iter([0.0, 0.5, 1.5, 2.5, 3.0, 13.0])
    monkeypatch.setattr(stage_child.time, "monotonic", lambda: next(clock))
    pipe = ProgressPipe(writer)
    printed.truncate(0)
    for done, message in enumerate(["scan", "scan", "refit", "refit", "refit", "refit"], 1):
        pipe(done, 9, "candidates", message)
    os.close(writer)
    with open(reader, "rb") as told:
        assert len(told.read().splitlines()) == 6, "every one is progress"
    logged = [line.partition("stage: ")[2] for line in printed.getvalue().splitlines()]
    assert logged == ["scan: 1 of 9 candidates", "refit: 3 of 9 candidates", "refit: 6 of 9 candidates"]
