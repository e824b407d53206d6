"""Parts a child saves on its way: kept under the claim's fence, taken up by the next attempt and by every shard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select, update

from service.store.models import SavedPartRow, StageRow
from service.store.stages import forget_saved_parts
from tests.contracts.test_stage_claims import claimed, stages_of, study_of
from tests.workers.test_supervisor import Bench, bench  # noqa: F401
from workers.saved_parts import SavedParts


def computed(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def shards_of(bench: Bench, study_id: str) -> list[StageRow]:  # noqa: F811
    with bench.database.read() as session:
        query = select(StageRow).where(StageRow.study_id == study_id, StageRow.kind == "scan_shard")
        return list(session.scalars(query.order_by(StageRow.shard)))


def test_an_attempt_that_dies_leaves_its_rows_to_the_next(bench: Bench, tmp_path: Path) -> None:  # noqa: F811
    rows = tmp_path / "rows"
    tiny = {"kind": "-", "rows": str(rows), "die_at_row": 2, "once": str(tmp_path / "once")}
    study_id = bench.study(tiny, max_attempts=2)
    assert bench.run_all(study_id).state == "succeeded"
    assert stages_of(bench.database, study_id)["scan0"].fence == 3, "claimed, lost, claimed"
    assert computed(rows) == ["0", "1", "2", "2", "3"], "only the row that was under way is computed again"


def test_attempts_that_bring_something_new_do_not_use_up_the_stage(bench: Bench, tmp_path: Path) -> None:  # noqa: F811
    tiny = {"kind": "-", "rows": str(tmp_path / "rows"), "die_at_row": 2, "once": str(tmp_path / "no folder" / "once")}
    study_id = bench.study(tiny, max_attempts=2)
    bench.run(study_id)
    for attempt in (1, 2):
        bench.run(study_id, "scan0")
        stage = stages_of(bench.database, study_id)["scan0"]
        assert (stage.state, stage.attempt) == ("queued", 1), f"attempt {attempt} brought rows"
        with bench.database.write() as session:
            kept = SavedPartRow.name == "row_1.json"
            session.execute(delete(SavedPartRow).where(kept))
    bench.run(study_id, "scan0")
    bench.run(study_id, "scan0")
    bench.run(study_id, "scan0")
    assert study_of(bench.database, study_id).state == "failed", "attempts that bring nothing are counted"


def test_shards_save_and_the_scan_computes_nothing(bench: Bench, tmp_path: Path) -> None:  # noqa: F811
    rows = tmp_path / "rows"
    study_id = bench.study({"kind": "-", "rows": str(rows)}, shards=2)
    assert bench.run(study_id, "check")
    first, second = shards_of(bench, study_id)
    assert bench.supervisor.run(second.id)
    assert computed(rows) == ["1", "3"]
    assert stages_of(bench.database, study_id)["scan0"].state == "blocked"
    assert bench.supervisor.run(first.id)
    assert computed(rows) == ["1", "3", "0", "2"]
    assert bench.run_all(study_id).state == "succeeded"
    assert len(computed(rows)) == 4, "the scan took up what its shards had saved"


def test_a_failed_study_leaves_its_rows_to_the_next(bench: Bench, tmp_path: Path) -> None:  # noqa: F811
    rows = tmp_path / "rows"
    tiny = {"kind": "-", "rows": str(rows), "die_at_row": 2, "once": str(tmp_path / "once")}
    lost = bench.study({**tiny, "once": str(tmp_path / "no folder" / "once")}, max_attempts=1)
    bench.run_all(lost)
    assert study_of(bench.database, lost).state == "failed"
    before = len(computed(rows))
    bench.run_all(bench.study({**tiny, "die_at_row": None}))
    assert computed(rows)[before:] == ["2", "3"]


def parts_of(bench: Bench, folder: Path) -> tuple[Any, SavedParts]:  # noqa: F811
    study_id = bench.study()
    held = claimed(bench.database, study_id, "check")
    saved = folder / "files" / "saved"
    saved.mkdir(parents=True)
    return held, SavedParts(bench.database, bench.blobs, held, "key", saved)


def names(bench: Bench) -> dict[str, int]:  # noqa: F811
    with bench.database.read() as session:
        return {row.name: row.size_bytes for row in session.scalars(select(SavedPartRow))}


def test_only_whole_plain_files_of_the_child_are_kept(bench: Bench, tmp_path: Path) -> None:  # noqa: F811
    _, parts = parts_of(bench, tmp_path / "stage")
    saved = tmp_path / "stage" / "files" / "saved"
    secret = tmp_path / "secret.json"
    secret.write_text("secret")
    (saved / "link.json").symlink_to(secret)
    os.link(secret, saved / "hard.json")
    os.mkfifo(saved / "pipe.json")
    (saved / ".hidden.json").write_text("{}")
    (saved / "half.partial").write_text("{}")
    (saved / "row.json").write_text("{}")
    assert parts.keep()
    assert names(bench) == {"row.json": 2}
    (saved / "row.json").write_text("{...}")
    assert parts.keep()
    assert names(bench) == {"row.json": 5}, "a part written anew replaces the one before"
    assert (saved / "row.json").exists(), "the child may read on"


def test_a_lost_claim_keeps_nothing(bench: Bench, tmp_path: Path) -> None:  # noqa: F811
    held, parts = parts_of(bench, tmp_path / "stage")
    with bench.database.write() as session:
        session.execute(update(StageRow).where(StageRow.id == held.stage_id).values(fence=held.fence + 1))
    (tmp_path / "stage" / "files" / "saved" / "row.json").write_text("{}")
    assert not parts.keep()
    assert names(bench) == {}


def test_a_lost_file_fails_clearly_and_a_new_study_makes_it_anew(bench: Bench) -> None:  # noqa: F811
    first = bench.study()
    bench.run(first, "check")
    with bench.database.read() as session:
        outputs = session.scalars(select(StageRow.outputs).where(StageRow.kind == "check")).one()
    assert outputs is not None
    for path in (bench.settings.data_folder / "blobs").rglob(outputs[0]["sha256"]):
        path.unlink()
    bench.run(first, "scan0")
    error = study_of(bench.database, first).error
    assert error is not None
    assert error["code"] == "file_lost"
    again = bench.study()
    assert stages_of(bench.database, again)["check"].state == "queued"
    assert bench.run_all(again).state == "succeeded"


def test_old_parts_are_forgotten(bench: Bench, tmp_path: Path) -> None:  # noqa: F811
    _, parts = parts_of(bench, tmp_path / "stage")
    for name in ("old.json", "new.json"):
        (tmp_path / "stage" / "files" / "saved" / name).write_text("{}")
    assert parts.keep()
    with bench.database.write() as session:
        session.execute(update(SavedPartRow).where(SavedPartRow.name == "old.json").values(created_at=1.0))
        assert forget_saved_parts(session, 3600.0) == 1
    assert names(bench) == {"new.json": 2}
