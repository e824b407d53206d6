"""Backup: the whole database and every blob it names in one tar file, and back into an empty place.

    tables/<name>.jsonl    one row per line, parents before children
    blobs/<sha256>         the bytes
    manifest.json          schema revision, row counts, hashes

Tables are plain JSON, so a backup of SQLite restores into PostgreSQL and the other way round: this is also how an
installation moves from the laptop stack to the production stack.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from sqlalchemy import JSON, Connection, Table, insert, null, select

from service.blobs import BlobDamaged, Blobs, hash_file
from service.store.database import Database
from service.store.migrate import current_revision, known_revisions, migrate, migrate_to
from service.store.references import named_blobs, reflected_tables, rows_of
from service.version import VERSION

FORMAT = 1
MANIFEST = "manifest.json"
LIVE_TABLES = frozenset({"workers"})  # processes of this moment; they announce themselves again
_BLOB = re.compile(r"blobs/([0-9a-f]{64})")


class BackupError(Exception):
    """The archive or the place it should go to is not as it must be; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class TableEntry:
    """One table in the archive."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an archive holds. `missing_blobs` were named by the database and not in the store."""

    format: int
    version: str
    revision: str
    created_at: float
    tables: tuple[TableEntry, ...]
    blob_count: int
    blob_bytes: int
    missing_blobs: tuple[str, ...]

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Manifest:
        if document.get("format") != FORMAT:
            raise BackupError(
                f"the backup has format {document.get('format')!r}", f"this version reads format {FORMAT}"
            )
        tables = tuple(TableEntry(**entry) for entry in document["tables"])
        return cls(**{**document, "tables": tables, "missing_blobs": tuple(document["missing_blobs"])})


def write_backup(database: Database, blobs: Blobs, path: Path) -> Manifest:
    """Write an archive at `path`, whole or not at all; the server may run meanwhile.

    The tables are of one moment. Blobs follow them: they never change, and a collector's grace keeps them until then.
    """
    if path.exists():
        raise BackupError(f"{path} exists", "choose another name; a backup is never overwritten")
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                manifest = _fill(archive, database, blobs, path.parent)
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, path)
    finally:
        part.unlink(missing_ok=True)
    return manifest


def _fill(archive: tarfile.TarFile, database: Database, blobs: Blobs, workspace: Path) -> Manifest:
    revision = current_revision(database)
    if revision is None:
        raise BackupError("the database has no tables", "nothing to back up yet")
    named: set[str] = set()
    expected: set[str] = set()
    with database.reader.connect() as connection:
        if not database.is_sqlite:  # one moment for all tables; a SQLite transaction sees only one anyway
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        created_at = time.time()
        tables = tuple(
            _add_table(archive, connection, table, named, expected, workspace)
            for table in reflected_tables(connection)
            if table.name not in LIVE_TABLES
        )
    held = {file.sha256: file.size_bytes for file in blobs.files() if file.sha256 in named}
    for sha256, size_bytes in held.items():
        assert sha256 is not None
        _add_blob(archive, blobs, sha256, size_bytes)
    missing = tuple(sorted(expected - held.keys()))
    manifest = Manifest(FORMAT, VERSION, revision, created_at, tables, len(held), sum(held.values()), missing)
    content = json.dumps(asdict(manifest), indent=1).encode()
    archive.addfile(_entry(MANIFEST, len(content)), io.BytesIO(content))
    return manifest


def _add_table(
    archive: tarfile.TarFile,
    connection: Connection,
    table: Table,
    named: set[str],
    expected: set[str],
    workspace: Path,
) -> TableEntry:
    """Write one table; note what its rows name, and of that what must lie in the store."""
    digest = hashlib.sha256()
    count = 0
    with tempfile.TemporaryFile(dir=workspace) as file:
        for row in rows_of(connection, table):
            line = json.dumps(row).encode() + b"\n"
            digest.update(line)
            file.write(line)
            count += 1
            names = named_blobs(row)
            named |= names
            if names:
                expected |= set(_files_of(row))
        size_bytes = file.tell()
        file.seek(0)
        archive.addfile(_entry(f"tables/{table.name}.jsonl", size_bytes), file)
    return TableEntry(table.name, count, digest.hexdigest())


def _files_of(value: Any) -> Iterator[str]:
    """The files in a row or document: whatever has both a `sha256` and a `size_bytes`, unless it lists its files."""
    if isinstance(value, dict):
        if "sha256" in value and "size_bytes" in value and "files" not in value:
            yield value["sha256"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _files_of(item)


def _add_blob(archive: tarfile.TarFile, blobs: Blobs, sha256: str, size_bytes: int) -> None:
    with blobs.open(sha256) as source:
        reader = _Hashing(source)
        archive.addfile(_entry(f"blobs/{sha256}", size_bytes), reader)
    if reader.digest.hexdigest() != sha256:
        raise BlobDamaged(f"blob {sha256} holds other bytes; a backup of it would be no help")


class _Hashing:
    """A file that is hashed while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self.digest.update(piece)
        return piece


def _entry(name: str, size_bytes: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    info.mtime = int(time.time())
    info.mode = 0o600
    return info


def read_manifest(path: Path) -> Manifest:
    """What the archive says of itself. Raises `BackupError` when it is none."""
    with _opened(path) as archive:
        return _manifest_of(archive)


def restore_backup(path: Path, database: Database, blobs: Blobs, workspace: Path) -> Manifest:
    """Fill an empty database and a blob store from an archive, and bring the tables to this version's schema.

    All rows come in one transaction after all blobs: a restore that fails leaves an empty database and can be repeated.
    `workspace` is a folder with room for the largest blob.
    """
    with _opened(path) as archive:
        manifest = _manifest_of(archive)
        _refuse_unless_empty(database, manifest)
        migrate_to(database, manifest.revision)
        for member in archive:
            if found := _BLOB.fullmatch(member.name):
                _restore_blob(archive, member, found.group(1), blobs, workspace)
        with database.writer.begin() as connection:
            tables = {table.name: table for table in reflected_tables(connection)}
            _refuse_rows(connection, tables.values())
            for entry in sorted(manifest.tables, key=lambda entry: list(tables).index(entry.name)):
                _restore_table(archive, connection, tables[entry.name], entry)
    migrate(database)
    return manifest


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:") as archive:
            yield archive
    except (tarfile.TarError, EOFError) as error:
        raise BackupError(f"{path} is not a backup: {error}", "give the file that `backup` wrote") from None


def _manifest_of(archive: tarfile.TarFile) -> Manifest:
    return Manifest.from_json(json.loads(_content(archive, MANIFEST)))


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise BackupError(f"the backup lacks {name}", "the file is incomplete; use another")
    return file.read()


def _refuse_unless_empty(database: Database, manifest: Manifest) -> None:
    if manifest.revision not in known_revisions(database):
        raise BackupError(
            f"the backup's schema {manifest.revision} is unknown here",
            f"it was written by version {manifest.version}; this is {VERSION}",
        )
    if (found := current_revision(database)) not in (None, manifest.revision):
        raise BackupError(f"the database has schema {found} already", "restore into an empty database or data folder")


def _refuse_rows(connection: Connection, tables: Iterable[Table]) -> None:
    for table in tables:
        if connection.execute(select(table).limit(1)).first() is not None:
            raise BackupError(f"the table {table.name} has rows", "restore into an empty database or data folder")


def _restore_blob(
    archive: tarfile.TarFile, member: tarfile.TarInfo, sha256: str, blobs: Blobs, workspace: Path
) -> None:
    source = archive.extractfile(member)
    assert source is not None, "a blob is a plain file"
    with tempfile.TemporaryDirectory(dir=workspace) as folder:
        path = Path(folder) / "blob"
        with open(path, "wb") as target:
            shutil.copyfileobj(source, target)
        if (found := hash_file(path)) != sha256:
            raise BackupError(f"blob {sha256} of the backup has the hash {found}", "the file is damaged; use another")
        blobs.adopt(path, sha256=sha256)


def _restore_table(archive: tarfile.TarFile, connection: Connection, table: Table, entry: TableEntry) -> None:
    content = _content(archive, f"tables/{entry.name}.jsonl")
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise BackupError(f"the table {entry.name} of the backup is damaged", "use another backup")
    documents = {column.name for column in table.columns if isinstance(column.type, JSON)}
    rows = [
        {name: null() if value is None and name in documents else value for name, value in json.loads(line).items()}
        for line in content.splitlines()
    ]
    for row in _parents_first(table, rows):
        connection.execute(insert(table), row)


def _parents_first(table: Table, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in an order in which a row comes after the rows of the same table it refers to."""
    own = [key for key in table.foreign_keys if key.column.table is table]
    if not own:
        return rows
    ordered: list[dict[str, Any]] = []
    placed: set[tuple[str, Any]] = set()
    while rows:
        waiting = []
        for row in rows:
            needs = [(key.column.name, row[key.parent.name]) for key in own if row[key.parent.name] is not None]
            if all(need in placed for need in needs):
                ordered.append(row)
                placed |= {(key.column.name, row[key.column.name]) for key in own}
            else:
                waiting.append(row)
        if len(waiting) == len(rows):
            raise BackupError(f"rows of {table.name} refer to rows that are not there", "the backup is damaged")
        rows = waiting
    return ordered
