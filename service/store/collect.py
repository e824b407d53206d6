"""Collection: removes blobs nobody names any more."""

from __future__ import annotations

import time
from dataclasses import dataclass

from service.blobs import Blobs, StoredFile
from service.store.database import Database
from service.store.references import referenced_blobs
from service.store.stage_logs import forget_logs
from service.store.stages import forget_saved_parts

PARTS_KEPT_S = 90 * 86400.0
"""Parts of scans are kept this long: the next device of a known model starts from them."""
LOGS_KEPT_S = 90 * 86400.0
"""What stages printed is read while a study is young."""


@dataclass(frozen=True)
class Collected:
    """What was removed, or with `dry_run` would have been; `kept_young` were unnamed but too young to judge."""

    removed: int
    removed_bytes: int
    kept_young: int
    named: int
    dry_run: bool


def collect_garbage(database: Database, blobs: Blobs, *, grace_s: float, dry_run: bool = False) -> Collected:
    """Remove what lies in the store unnamed and is older than `grace_s`, interrupted writes included.

    Bytes are stored before the row that names them is committed: the grace must outlast an upload and a stage. The
    store is listed before the database is read, and a file's age is asked again right before it goes.
    """
    oldest = time.time() - grace_s
    files = list(blobs.files())
    if not dry_run:
        with database.write() as session:
            forget_saved_parts(session, PARTS_KEPT_S)
            forget_logs(session, LOGS_KEPT_S)
    named = referenced_blobs(database)
    unnamed = [file for file in files if file.sha256 is None or file.sha256 not in named]
    removed: list[StoredFile] = []
    for file in unnamed:
        if file.modified_at <= oldest and (dry_run or blobs.remove(file, unless_younger_than=oldest)):
            removed.append(file)
    return Collected(
        len(removed), sum(file.size_bytes for file in removed), len(unnamed) - len(removed), len(named), dry_run
    )
