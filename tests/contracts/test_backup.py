"""Backup, restore and collection, on SQLite and on PostgreSQL and from one to the other."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
from sqlalchemy import select, update
from typer.testing import CliRunner

from service.blobs import Blobs
from service.settings import Settings
from service.store.backup import BackupError, read_manifest, restore_backup, write_backup
from service.store.collect import collect_garbage
from service.store.database import Database
from service.store.migrate import is_current, migrate
from service.store.models import ArtifactRow, ModelRow, StageRow, StudyRow
from service.store.references import referenced_blobs, reflected_tables, rows_of
from service.store.studies import now
from tests.contracts.test_stage_claims import claimed, finish, new_study, stages_of, study_of
from workers import claims
from workers.claims import OutputFile
from workers.server_cli import app

CONTENT = b"the artifact" * 100


def put(blobs: Blobs, folder: Path, content: bytes) -> OutputFile:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "file"
    path.write_bytes(content)
    blob = blobs.adopt(path)
    return OutputFile("artifact_0.onnx", blob.sha256, blob.size_bytes)


@pytest.fixture
def blobs(settings: Settings) -> Blobs:
    return Blobs(settings.resolved_blob_url)


@pytest.fixture
def study(database: Database, blobs: Blobs, tmp_path: Path) -> str:
    """A finished study with an artifact in the store, and a second one in the middle of its work."""
    study_id = new_study(database)
    output = put(blobs, tmp_path / "put", CONTENT)
    while queued := [name for name, stage in stages_of(database, study_id).items() if stage.state == "queued"]:
        for name in queued:
            held = claimed(database, study_id, name)
            outputs = [output] if name.startswith("evaluate") else []
            assert claims.succeed(database, held, outputs=outputs, summary={"said": "é"})
    assert study_of(database, study_id).state == "succeeded"
    claimed(database, new_study(database), "check")
    return study_id


def tables_of(database: Database) -> dict[str, list[dict[str, object]]]:
    with database.reader.connect() as connection:
        return {table.name: list(rows_of(connection, table)) for table in reflected_tables(connection)}


def empty_place(tmp_path: Path) -> tuple[Database, Blobs]:
    place = tmp_path / "restored"
    place.mkdir()
    return Database(f"sqlite:///{place / 'b.sqlite3'}"), Blobs(str(place / "blobs"))


def test_a_backup_comes_back_as_it_was(database: Database, blobs: Blobs, study: str, tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    manifest = write_backup(database, blobs, path)
    assert (manifest.blob_count, manifest.blob_bytes, manifest.missing_blobs) == (1, len(CONTENT), ())
    assert read_manifest(path) == manifest
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
    other, other_blobs = empty_place(tmp_path)
    restore_backup(path, other, other_blobs, tmp_path)
    before, after = tables_of(database), tables_of(other)
    for table in before.keys() - {"workers", "deployments"}:  # the last says when this version began to serve
        assert after[table] == before[table], table
    assert is_current(other)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    with other_blobs.open(sha256) as file:
        assert file.read() == CONTENT
    # The restored database is alive: the claim that was running expires, and the study goes on.
    with other.write() as session:
        session.execute(update(StageRow).values(lease_until=1.0).where(StageRow.state == "running"))
    assert claims.reap(other, backoff_s=0) == 1
    other.close()


def test_a_laptops_backup_restores_into_the_other_database(
    database: Database, sqlite_template: Path, tmp_path: Path
) -> None:
    """What SQLite wrote comes into whichever database is being tested."""
    source = Database(f"sqlite:///{tmp_path / 'source.sqlite3'}")
    migrate(source)
    study_id = new_study(source)
    finish(source, study_id, "check")
    path = tmp_path / "b.tar"
    write_backup(source, Blobs(str(tmp_path / "blobs")), path)
    with database.write() as session:  # the fixture's database is migrated; empty it
        for table in reversed(reflected_tables(session.connection())):
            session.execute(table.delete())
    restore_backup(path, database, Blobs(str(tmp_path / "other")), tmp_path)
    assert study_of(database, study_id).state == "running"
    assert study_of(database, study_id).error is None
    with database.read() as session:
        assert session.scalar(select(StudyRow.id).where(StudyRow.error.is_(None))) == study_id, "SQL NULL, not 'null'"
    source.close()


def test_nothing_is_restored_over_anything(database: Database, blobs: Blobs, study: str, tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    write_backup(database, blobs, path)
    with pytest.raises(BackupError, match="has rows"):
        restore_backup(path, database, blobs, tmp_path)
    with pytest.raises(BackupError, match="exists"):
        write_backup(database, blobs, path)


@pytest.mark.parametrize("damage", ["cut", "blob", "table", "no tar", "newer"])
def test_a_damaged_backup_is_refused_and_leaves_the_place_empty(
    sqlite_template: Path, tmp_path: Path, damage: str
) -> None:
    source = Database(f"sqlite:///{tmp_path / 'source.sqlite3'}")
    migrate(source)
    store = Blobs(str(tmp_path / "blobs"))
    study_id = new_study(source)
    held = claimed(source, study_id, "check")
    assert claims.succeed(source, held, outputs=[put(store, tmp_path / "put", CONTENT)], summary={})
    path = tmp_path / "b.tar"
    write_backup(source, store, path)
    source.close()
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "blob":
        path.write_bytes(content.replace(CONTENT[:50], b"x" * 50))
    elif damage == "table":
        path.write_bytes(content.replace(study_id.encode(), b"study_0000000000000000"))
    elif damage == "newer":
        path.write_bytes(content.replace(b'"format": 1', b'"format": 2'))
    else:
        path.write_bytes(b"not a tar")
    other, other_blobs = empty_place(tmp_path)
    with pytest.raises(BackupError) as refused:
        restore_backup(path, other, other_blobs, tmp_path)
    assert refused.value.hint
    if "studies" in tables_of(other):
        assert tables_of(other)["studies"] == []
    other.close()


def test_a_missing_blob_is_named(database: Database, blobs: Blobs, study: str, tmp_path: Path) -> None:
    for file in list(blobs.files()):
        blobs.remove(file, unless_younger_than=time.time() + 1)
    manifest = write_backup(database, blobs, tmp_path / "b.tar")
    assert manifest.missing_blobs == (hashlib.sha256(CONTENT).hexdigest(),)


def test_only_old_unnamed_files_are_collected(
    database: Database, blobs: Blobs, study: str, settings: Settings, tmp_path: Path
) -> None:
    old = put(blobs, tmp_path / "put", b"old and unnamed")
    for file in list(blobs.files()):
        os.utime(file.path, (0, 0))  # the named one is old, too
    left = Path(settings.resolved_blob_url) / "ab" / "left.part"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    young = put(blobs, tmp_path / "put", b"young")
    looked = collect_garbage(database, blobs, grace_s=3600, dry_run=True)
    assert (looked.removed, looked.kept_young) == (2, 1)
    assert blobs.exists(old.sha256)
    done = collect_garbage(database, blobs, grace_s=3600)
    assert (done.removed, done.removed_bytes) == (2, len(b"old and unnamed") + 4)
    assert not blobs.exists(old.sha256)
    assert not left.exists()
    assert blobs.exists(young.sha256)
    assert blobs.exists(hashlib.sha256(CONTENT).hexdigest())
    assert collect_garbage(database, blobs, grace_s=3600).removed == 0


def test_files_of_deleted_models_are_named_no_more(database: Database) -> None:
    sha256 = "cd" * 32
    with database.write() as session:
        files = [{"name": "model.onnx", "sha256": sha256, "size_bytes": 1}]
        at = now(session)
        session.add(ModelRow(id="model_2", sha256="ef" * 32, name="m", size_bytes=1, files=files, created_at=at))
    assert sha256 in referenced_blobs(database)
    with database.write() as session:
        session.execute(update(ModelRow).values(deleted_at=at))
    assert sha256 not in referenced_blobs(database)


def test_the_commands(
    database: Database, blobs: Blobs, study: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str, **environment: str) -> tuple[int, str]:
        names = {**settings.as_environment(), **environment}
        done = CliRunner().invoke(app, list(arguments), env=names)
        return done.exit_code, done.output

    path = str(tmp_path / "b.tar")
    status, said = run("backup", path)
    assert (status, "1 files" in said) == (0, True), said
    assert read_manifest(Path(path)).format == 1
    assert run("backup", path)[0] == 2
    assert run("restore", path)[0] == 2, "the database is not empty"
    place = {"BITWRIGHT_DATABASE_URL": "", "BITWRIGHT_DATA_FOLDER": str(tmp_path / "new")}
    status, said = run("restore", path, **place)
    assert (status, "1 files" in said) == (0, True), said
    status, said = run("gc", "--dry-run", **place)
    assert (status, "would remove 0 files" in said) == (0, True), said
    assert run("gc", "--grace-hours", "0")[0] == 2
    restored = Database(f"sqlite:///{tmp_path / 'new' / 'bitwright.sqlite3'}")
    with restored.read() as session:
        assert session.scalar(select(ArtifactRow.sha256)) == hashlib.sha256(CONTENT).hexdigest()
    restored.close()
