"""The study page in a real browser: polls to the end, draws front and bits, keeps hostile names inert."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, sync_playwright

import bitwright
from tests.e2e.running import Running, server, write_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install the package chromium")
LIMIT_MS = 30_000


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with server(tmp_path_factory.mktemp("browser") / "data") as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield launched
        launched.close()


class Watched:
    """A page with everything it complained of and every address it asked for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.addresses: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._asked)

    def _asked(self, request: Request) -> None:
        self.addresses.append(request.url)


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(LIMIT_MS)
    yield Watched(page)
    page.close()


def test_a_study_page_polls_to_the_verdict_and_shows_front_and_bits(
    running: Running, watched: Watched, tmp_path: Path
) -> None:
    page = watched.page
    with bitwright.Client(running.url) as client:
        study = client.submit(
            write_model(tmp_path / "net.onnx"),
            hardware="tiny-cpu",
            budgets={"latency_ms": "0.6x"},
            name="<b onclick=x>name</b>",
            options={"tiny": {"kind": "scan", "how": "sleep", "seconds": 3}},
        )
    page.goto(f"{running.url}/studies/{study.id}")
    page.wait_for_selector("#stages .state.running")
    page.wait_for_selector("#study[data-settled=true]")
    assert page.text_content("#state") == "succeeded"
    assert page.locator("#stages .state.succeeded").count() == 5
    hostile = "<img src=x onerror=window.hacked=1>{a|b}</script>"
    assert f"{hostile} is chosen." in (page.text_content("#verdicts") or "")
    page.wait_for_selector("#front svg")
    assert page.locator("#front svg path").count() > 20
    assert page.locator("#layers tbody tr").count() == 3
    assert page.text_content("#layers tbody tr:first-child .layer-name") == hostile
    assert page.text_content("#layers tbody tr:first-child .chip") == "w4a8"
    assert page.locator("#assemblies tr.chosen td:first-child").text_content() == hostile
    assert page.locator("#downloads a").count() == 6
    box = page.locator("#front").bounding_box()
    assert box is not None
    for step in range(1, 20):  # hover all over the chart, so that a tooltip shows the hostile name
        page.mouse.move(box["x"] + box["width"] * step / 20, box["y"] + box["height"] / 2)
    shot = os.environ.get("BITWRIGHT_TEST_SCREENSHOT")
    if shot:
        page.screenshot(path=shot, full_page=True)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert watched.complaints == []
    assert {address for address in watched.addresses if not address.startswith((running.url, "data:"))} == set()


def test_the_list_shows_studies_and_follows_their_state(running: Running, watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    with bitwright.Client(running.url) as client:
        study = client.submit(
            write_model(tmp_path / "net.onnx"),
            hardware="tiny-cpu",
            budgets={"latency_ms": "0.6x"},
            options={"tiny": {"kind": "check", "how": "sleep", "seconds": 2}},
        )
        page.goto(running.url)
        row = page.locator(f"tr[data-study={study.id}]")
        row.locator(".state.succeeded").wait_for()
        assert row.locator(".verdict").text_content() == "chosen"
        assert client.wait(study.id, timeout_s=60).succeeded
    assert watched.complaints == []


def test_an_error_is_told_in_words(running: Running, watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    with bitwright.Client(running.url) as client:
        study = client.submit(
            write_model(tmp_path / "net.onnx"),
            hardware="tiny-cpu",
            budgets={"latency_ms": "0.6x"},
            options={"tiny": {"kind": "check", "how": "user_error"}},
        )
    page.goto(f"{running.url}/studies/{study.id}")
    page.wait_for_selector("#study[data-settled=true]")
    assert page.text_content("#error") == "op_unsupported: the model has the op Loop export it without control flow"
    assert not page.locator("#results").is_visible()
    assert watched.complaints == []
