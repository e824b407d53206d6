"""The dashboard in a real browser on a running server: from the form to the verdict, and hostile names inert."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bitwright
from tests.e2e.browsing import Watched, browser, needs_browser, watched
from tests.e2e.running import Running, server, write_model

__all__ = ["browser", "watched"]
pytestmark = needs_browser
HOSTILE = "<img src=x onerror=window.hacked=1>{a|b}</script>"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with server(tmp_path_factory.mktemp("browser") / "data") as found:
        yield found


def submitted(running: Running, path: Path, name: str = "", **tiny: Any) -> str:
    with bitwright.Client(running.url) as client:
        study = client.submit(
            write_model(path),
            hardware="tiny-cpu",
            budgets={"latency_ms": "0.6x"},
            name=name,
            options={"tiny": tiny} if tiny else {},
        )
    return study.id


def test_a_study_page_polls_to_the_verdict_and_shows_front_and_bits(
    running: Running, watched: Watched, tmp_path: Path
) -> None:
    page = watched.page
    study = submitted(running, tmp_path / "net.onnx", "<b onclick=x>name</b>", kind="scan", how="sleep", seconds=3)
    page.goto(f"{running.url}/studies/{study}")
    page.wait_for_selector("#stages .state.running")
    page.wait_for_selector("#log li:has-text('scan started')")
    page.wait_for_selector("main[data-settled=true]")
    assert page.locator("#stages .state.succeeded").count() == page.locator("#stages li").count()
    assert f"{HOSTILE} is chosen." in (page.text_content("#verdicts") or "")
    assert page.locator("#verdicts dt").all_text_contents() == ["latency", "size", "loss, nats", "accuracy"]
    page.wait_for_selector("main[data-drawn=true]")
    assert page.locator("#front svg path").count() > 20
    assert page.locator("#bits svg path").count() >= 3
    assert page.locator("#predicted svg path").count() > 3
    assert page.locator("#layers tbody tr").count() == 3
    assert page.text_content("#layers tbody tr:first-child td") == HOSTILE
    assert page.text_content("#layers tbody tr:first-child .chip") == "w4a8"
    assert page.locator("#assemblies tr.chosen td:first-child").text_content() == f"{HOSTILE}chosen"
    assert page.locator("#downloads a[download]").count() == 6
    for chart in ("#front", "#bits", "#predicted"):
        page.locator(chart).scroll_into_view_if_needed()
        box = page.locator(chart).bounding_box()
        assert box is not None
        for step in range(1, 12):  # hover all over it, so that a tooltip shows the hostile name
            page.mouse.move(box["x"] + box["width"] * step / 12, box["y"] + box["height"] / 2)
    shot = os.environ.get("BITWRIGHT_TEST_SCREENSHOT")
    if shot:
        page.screenshot(path=shot, full_page=True)
    watched.must_be_clean(running.url)


def test_the_budget_slider_shows_a_stored_allocation_at_once(
    running: Running, watched: Watched, tmp_path: Path
) -> None:
    page = watched.page
    study = submitted(running, tmp_path / "net.onnx")
    page.goto(f"{running.url}/studies/{study}")
    page.wait_for_selector("main[data-drawn=true]")
    asked = len(watched.addresses)
    assert page.locator("#budget").get_attribute("max") == "7"
    assert page.text_content("#mix-words") == "1 × fp32, 1 × w8a8, 1 × w4a8"
    page.locator("#budget").fill("3")
    page.wait_for_selector("#back:visible")
    assert page.text_content("#budget-value") == "≤ 1.6 ms"
    assert page.text_content("#mix-words") == "2 × fp32, 1 × w8a8", "the allocation of that point of the front"
    assert page.text_content("#layers tbody tr:first-child .chip") == "fp32"
    page.locator("#back").click()
    assert page.text_content("#layers tbody tr:first-child .chip") == "w4a8"
    page.locator("#find").fill("head")
    assert page.locator("#layers tbody tr").count() == 1
    page.locator("#find").fill("")
    page.locator("#order").select_option("sensitivity")
    assert page.text_content("#layers tbody tr:first-child td") == HOSTILE, "the most sensitive layer first"
    assert len([one for one in watched.addresses[asked:] if "/data/" in one or "/v1/" in one]) == 0
    watched.must_be_clean(running.url)


def test_the_list_filters_follows_states_and_opens_a_comparison(
    running: Running, watched: Watched, tmp_path: Path
) -> None:
    page = watched.page
    first = submitted(running, tmp_path / "one.onnx", "needle one")
    second = submitted(running, tmp_path / "two.onnx", "needle two", kind="check", how="sleep", seconds=2)
    page.goto(f"{running.url}/?name=needle&hardware=tiny-cpu")
    assert sorted(
        page.locator("#studies tbody tr").evaluate_all("rows => rows.map(row => row.dataset.study)")
    ) == sorted([first, second])
    for study in (first, second):
        row = page.locator(f"tr[data-study={study}]")
        row.locator(".state.succeeded").wait_for()
        assert row.locator(".verdict").text_content() == "chosen"
        row.locator("input").check()
    assert page.text_content("#compare") == "Compare 2"
    page.locator("#compare").click()
    page.wait_for_selector("main[data-drawn=true]")
    assert page.locator("#compared tbody tr").count() == 2
    assert page.locator("#fronts svg path").count() > 10
    assert page.text_content("#difference") == "All 3 layers get the same bits."
    page.goto(f"{running.url}/?name=no%20such%20name")
    assert page.text_content(".empty") == "No study matches."
    watched.must_be_clean(running.url)


def test_an_error_is_told_in_words(running: Running, watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    study = submitted(running, tmp_path / "net.onnx", kind="check", how="user_error")
    page.goto(f"{running.url}/studies/{study}")
    page.wait_for_selector("main[data-settled=true]")
    assert page.text_content("#error") == "op_unsupported: the model has the op Loop export it without control flow"
    assert not page.locator("#results").is_visible()
    watched.must_be_clean(running.url)


def test_a_form_sends_files_and_tells_what_is_wrong(running: Running, watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    page.goto(f"{running.url}/submit")
    page.locator("#go").click()
    assert "Choose a model first" in (page.text_content("#problem") or "")
    model = write_model(tmp_path / "<b>net.onnx")
    # As a drop does it: the files arrive in the event, not in the input.
    page.evaluate(
        """([name, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name));
            document.querySelector(".drop[data-kind=model] label")
                .dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        [model.name, list(model.read_bytes())],
    )
    assert page.text_content(".drop[data-kind=model] .told") == "<b>net.onnx"
    data = tmp_path / "data.npz"
    data.write_bytes(b"PK\x03\x04data")
    page.locator("input[name=dataset]").set_input_files(data)
    page.locator("input[name=latency_ms]").fill("fast")
    page.locator("#go").click()
    page.wait_for_selector("#problem:visible")
    assert "positive number" in (page.text_content("#problem") or "")
    assert page.locator("input[name=latency_ms]").get_attribute("aria-invalid") == "true"
    page.locator("input[name=latency_ms]").fill("0.6x")
    page.locator("input[name=name]").fill("from the form")
    page.locator("#go").click()
    page.wait_for_url("**/studies/study_*")
    page.wait_for_selector("main[data-drawn=true]")
    assert page.text_content("h1") == "from the form"
    refused = [one for one in watched.complaints if "422" not in one]  # Chromium reports the refusal itself
    assert refused == []


def test_the_other_pages_stand_and_stay_clean(running: Running, watched: Watched, tmp_path: Path) -> None:
    with bitwright.Client(running.url) as client:
        client.upload_model(write_model(tmp_path / "<img src=x onerror=window.hacked=1>.onnx"))
    page = watched.page
    expected = {
        "/models": "onerror=window.hacked=1>.onnx",
        "/hardware": "tiny-cpu",
        "/compare": "Mark two to six",
        "/submit": "Drop an ONNX file",
        "/workers": "measure.tiny-cpu",
    }
    for address, words in expected.items():
        page.goto(f"{running.url}{address}")
        assert words in (page.text_content("main") or "")
    with page.expect_response(f"{running.url}/workers"):  # the page asks again by itself
        pass
    assert expected["/workers"] in (page.text_content("main") or "")
    watched.must_be_clean(running.url)
