"""Names from strangers, ranges, and hosts."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from service.artifacts import parse_range
from service.dashboard.router import HERE
from service.errors import Problem
from service.uploads import safe_name
from workers.server_cli import is_loopback


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("net.onnx", "net.onnx"),
        ("../../etc/passwd", "passwd"),
        ("C:\\temp\\net.onnx", "net.onnx"),
        (".hidden", "hidden"),
        ("..", "unnamed"),
        ("", "unnamed"),
        ("a\x00b\x1b[31m.onnx", "ab[31m.onnx"),
        ("x" * 500 + ".onnx", "x" * 195 + ".onnx"),
    ],
)
def test_names_are_made_safe(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_ranges() -> None:
    assert parse_range(None, 10) is None
    assert parse_range("bytes=0-0", 10) == (0, 0)
    assert parse_range("bytes=-20", 10) == (0, 9)
    for outside in ("bytes=10-", "bytes=-0"):
        with pytest.raises(Problem) as refused:
            parse_range(outside, 10)
        assert refused.value.status_code == 416


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.1", False), ("x", False)],
)
def test_only_loopback_is_this_machine(host: str, own: bool) -> None:
    assert is_loopback(host) is own


def test_vendored_files_are_unchanged() -> None:
    folder: Path = HERE / "static" / "vendored"
    listed = re.findall(r"\| `([^`]+)` \|.*\| `([0-9a-f]{64})` \|", (folder / "README.md").read_text())
    scripts = {path.name for path in folder.glob("*.js")}
    assert {name for name, _ in listed} == scripts
    for name, sha256 in listed:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256


def test_pages_hold_no_script_and_no_foreign_address() -> None:
    own = [*(HERE / "templates").glob("*.html"), *(HERE / "static").glob("*.*")]
    assert len(own) >= 8
    for path in own:
        text = path.read_text()
        assert not re.search(r"https?://|//cdn|innerHTML|insertAdjacentHTML|document\.write|\|\s*safe", text), path.name
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=", text), path.name
