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
from tests.workers.tiny_stages import PRINTED

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
    own = [one for one in watched.addresses[asked:] if not one.endswith("/log")]  # what stages printed is followed
    assert len([one for one in own if "/data/" in one or "/v1/" in one]) == 0
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


def test_what_a_stage_prints_is_followed_and_stays(running: Running, watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    until = tmp_path / "go on"
    study = submitted(running, tmp_path / "net.onnx", kind="scan", how="print", until=str(until))
    page.goto(f"{running.url}/studies/{study}")
    lines = page.locator("#printed-lines")
    lines.get_by_text(PRINTED[-1]).wait_for()
    shown = lines.text_content() or ""
    assert "a warning of a library" in shown, "without a terminal's colours"
    assert str(running.data_folder) not in shown
    assert page.locator("#printed-lines *").count() == 0, "text, whatever it says"
    assert page.locator("#printed-stage").input_value() == "scan, target 1"
    page.locator("#printed-stage").select_option("check")
    assert "check is done" in (lines.text_content() or "")
    until.touch()
    page.wait_for_selector("main[data-settled=true]")
    page.reload()
    page.locator("#printed summary").click()
    page.locator("#printed-stage").select_option("scan, target 1")
    assert "scan is done" in (lines.text_content() or "")
    watched.must_be_clean(running.url)


def test_another_budget_is_asked_for_and_shown(running: Running, watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    study = submitted(running, tmp_path / "net.onnx")
    page.goto(f"{running.url}/studies/{study}")
    page.wait_for_selector("main[data-drawn=true]")
    page.wait_for_selector("main[data-settled=true]")
    page.locator("#ask button").click()
    assert page.text_content("#ask [role=alert]") == "Give at least one budget."
    page.locator("#ask [name=latency_ms]").fill("fast")
    page.locator("#ask button").click()
    page.wait_for_selector("#ask [name=latency_ms][aria-invalid=true]")
    page.locator("#budget").fill("7")
    page.locator("#ask-this").click()
    assert page.locator("#ask [name=latency_ms]").input_value() == "2.401", "where the slider stands"
    page.locator("#ask button").click()
    rows = page.locator("#asked tbody tr")
    page.wait_for_selector("#asked tbody tr")
    assert "looked up" in (rows.first.text_content() or "")
    assert "1 × w4a8" in (rows.first.text_content() or "")
    page.wait_for_selector("#bits-of:has-text('asked for')")
    assert page.text_content("#layers tbody tr:nth-child(2) .chip") == "w8a8"
    page.locator("#ask [name=exact]").check()
    page.locator("#ask button").click()
    page.wait_for_selector("#asked tbody tr .state:has-text('solved')")
    assert rows.count() == 2
    page.reload()
    page.wait_for_selector("main[data-drawn=true]")
    page.locator("#asked button[data-show]").first.click()
    page.wait_for_selector("#bits-of:has-text('asked for')")
    refused = [one for one in watched.complaints if "422" not in one]  # Chromium reports the refusal itself
    assert refused == []


def test_own_results_are_posted_where_the_study_waits_for_them(
    running: Running, watched: Watched, tmp_path: Path
) -> None:
    with bitwright.Client(running.url) as client:
        study = client.submit(
            write_model(tmp_path / "net.onnx"), hardware="tiny-cpu", budgets={"latency_ms": "0.6x"},
            evaluator={"metric": HOSTILE[:40]},
        ).id  # fmt: skip
    page = watched.page
    page.goto(f"{running.url}/studies/{study}")
    page.wait_for_selector("#evaluate-0")
    assert page.locator("#evaluate-0 a[download]").all_text_contents() == ["finalist_0.onnx", "finalist_1.onnx"]
    fields = page.locator("#evaluate-0 input")
    fields.nth(0).fill("much")
    page.locator("#evaluate-0 button").click()
    assert page.text_content("#evaluate-0 [role=alert]") == "“much” is not a number."
    fields.nth(0).fill("0.5")
    page.locator("#evaluate-0 button").click()
    page.wait_for_selector("#evaluate-0 p:has-text('1 of 2 missing')")
    assert fields.nth(0).input_value() == "0.5"
    fields.nth(1).fill("0,75")
    page.locator("#evaluate-0 button").click()
    page.wait_for_selector("#verdicts .sentence:has-text('mixed is chosen.')")
    page.wait_for_selector("main[data-settled=true]")
    assert page.locator("#evaluate-0").count() == 0
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
