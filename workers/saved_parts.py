"""Saved parts: what a child has finished so far is taken to the store while it works, under its claim's fence.

The child writes whole files into `saved/`; a sweep finds those that are new, copies them and enters them in one
transaction that proves the claim. The next attempt, other shards and other studies of the same work start from them.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.blobs import CHUNK_BYTES, Blob, Blobs
from service.store.database import Database, database_now
from service.store.models import SavedPartRow
from workers import claims
from workers.claims import Claim

FILES_AT_ONCE = 64
BYTES_AT_ONCE = 64 << 20
MOST_PARTS = 100_000
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}\.(npz|json)")


class SavedParts:
    """The parts of one attempt: `folder` is where its child leaves them, those there already are known."""

    def __init__(self, database: Database, blobs: Blobs, held: Claim, saved_key: str, folder: Path) -> None:
        self._database = database
        self._blobs = blobs
        self._held = held
        self._saved_key = saved_key
        self._folder = folder
        self._kept = dict(self._present())

    def keep(self) -> bool:
        """Take some of what is new to the store: a batch that is done within a beat. False when the claim is lost."""
        batch: dict[str, tuple[int, int]] = {}
        for name, mark in self._present():
            if self._kept.get(name) != mark and len(self._kept) < MOST_PARTS:
                batch[name] = mark
            if len(batch) == FILES_AT_ONCE or sum(size for _, size in batch.values()) > BYTES_AT_ONCE:
                break
        blobs = {name: blob for name in batch if (blob := self._copy(name)) is not None}
        if blobs and not claims.checkpoint(self._database, self._held, lambda session: self._enter(session, blobs)):
            return False
        self._kept.update(batch)
        return True

    @property
    def all_kept(self) -> bool:
        return len(self._kept) >= MOST_PARTS or all(self._kept.get(name) == mark for name, mark in self._present())

    def _present(self) -> list[tuple[str, tuple[int, int]]]:
        """Names with what tells a rewritten file from the one before: time and size."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    found.append((entry.name, (status.st_mtime_ns, status.st_size)))
        return sorted(found)

    def _copy(self, name: str) -> Blob | None:
        """A private copy in the store; None for what is no plain file. The child may still read its own."""
        try:
            descriptor = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        with open(descriptor, "rb") as source:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                return None
            copy = self._folder.parents[1] / "part"
            with open(copy, "wb") as target:
                shutil.copyfileobj(source, target, CHUNK_BYTES)
        return self._blobs.adopt(copy)

    def _enter(self, session: Session, blobs: dict[str, Blob]) -> int:
        dialect = sqlite if self._database.is_sqlite else postgresql
        entering = dialect.insert(SavedPartRow).values(
            [
                {
                    "saved_key": self._saved_key,
                    "name": name,
                    "sha256": blob.sha256,
                    "size_bytes": blob.size_bytes,
                    "created_at": database_now(),
                }
                for name, blob in sorted(blobs.items())
            ]
        )
        new = entering.excluded
        replacing = entering.on_conflict_do_update(
            index_elements=["saved_key", "name"],
            set_={"sha256": new.sha256, "size_bytes": new.size_bytes, "created_at": new.created_at},
            where=SavedPartRow.sha256 != new.sha256,
        )
        return len(session.execute(replacing.returning(SavedPartRow.name)).all())
