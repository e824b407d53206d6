"""The dashboard with keys switched on: a browser shows a key once, and its buttons carry the proof they need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import bitwright
from service.keys.keys import create_key
from service.store.database import Database
from service.store.migrate import migrate
from tests.e2e.browsing import Watched, browser, needs_browser, watched
from tests.service.stack import SentMessages, announce_tiny_worker, quick_settings, serving

__all__ = ["browser", "watched"]
pytestmark = needs_browser


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Address of an API that asks for keys, and keys that may read and write."""
    settings = quick_settings(tmp_path / "data", f"sqlite:///{tmp_path / 'db.sqlite3'}", auth="keys")
    database = Database(settings.resolved_database_url)
    migrate(database)
    with database.write() as session:
        keys = {scope: create_key(session, name=scope, scopes=[scope])[1] for scope in ("read", "write")}
    database.close()
    announce_tiny_worker(settings)
    with serving(settings, SentMessages()) as http:
        yield str(http.base_url).rstrip("/"), keys


def test_log_in_act_and_log_out(locked: tuple[str, dict[str, str]], watched: Watched, tmp_path: Path) -> None:
    url, keys = locked
    model = tmp_path / "net.onnx"
    model.write_bytes(b"\x08\x0atiny")
    with bitwright.Client(url, key=keys["write"]) as client:
        study = client.submit(model, hardware="tiny-cpu", budgets={"bops": "0.5x"})
    page = watched.page
    page.goto(f"{url}/studies/{study.id}")
    assert "/login" in page.url
    page.fill("input[name=key]", "bw_wrong")
    page.click("button")
    assert "unknown" in (page.text_content("[role=alert]") or "")
    page.fill("input[name=key]", keys["write"])
    page.click("button")
    page.wait_for_url(f"**/studies/{study.id}")
    page.click("#actions button:has-text('Cancel')")
    page.wait_for_selector(".state.cancelled")
    page.goto(f"{url}/submit")
    page.locator("input[name=model]").set_input_files(model)
    page.locator("#go").click()
    page.wait_for_url("**/studies/study_*")
    page.click("button:has-text('Log out')")
    page.wait_for_url("**/login")
    page.goto(f"{url}/")
    assert "/login" in page.url
    assert [one for one in watched.complaints if "401" not in one] == []


def test_a_reader_is_offered_no_buttons(locked: tuple[str, dict[str, str]], watched: Watched) -> None:
    url, keys = locked
    page = watched.page
    page.goto(f"{url}/login")
    page.fill("input[name=key]", keys["read"])
    page.click("button")
    page.wait_for_selector("nav")
    assert page.locator("a:has-text('New study')").count() == 0
    page.goto(f"{url}/submit")
    assert "may not submit" in (page.text_content("main") or "")
    assert watched.complaints == []
