"""Transfer: files up in one request, files down in as many as it takes, whole and with the right hash or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO

from bitwright.connection import Connection
from bitwright.errors import BitwrightError, DamagedDownload
from bitwright.records import Artifact

Fields = list[tuple[str, tuple[str, IO[bytes]]]]


def opened(parts: Sequence[tuple[str, Path]]) -> Callable[[], AbstractContextManager[Fields]]:
    """A way to open the files of a form, as often as the request is tried."""

    @contextmanager
    def make() -> Iterator[Fields]:
        with ExitStack() as stack:
            fields: Fields = []
            for field, path in parts:
                try:
                    fields.append((field, (path.name, stack.enter_context(open(path, "rb")))))
                except OSError as error:
                    raise BitwrightError(f"cannot read {path}: {error.strerror}") from None
            yield fields

    return make


def fetch(connection: Connection, artifact: Artifact, folder: Path) -> Path:
    """Download a file into `folder` under its own name, going on where an earlier try broke off.

    A file already there whole is kept. Raises `DamagedDownload`; a damaged file never appears under its name.
    """
    name = Path(artifact.name).name
    if name != artifact.name or name in ("", ".", ".."):
        raise DamagedDownload(f"the server names a file {artifact.name!r}, which is not a plain file name")
    path, part = folder / name, folder / f".{name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file() and _sha256(path) == artifact.sha256:
            return path
        connection.again(lambda: _go_on(connection, artifact, part))
        found = _sha256(part)
        if found != artifact.sha256:
            part.unlink()
            raise DamagedDownload(f"{name} has sha256 {found}, the server named {artifact.sha256}")
        part.replace(path)
    except OSError as error:
        raise BitwrightError(f"cannot write {path}: {error.strerror}") from None
    return path


def _go_on(connection: Connection, artifact: Artifact, part: Path) -> None:
    have = part.stat().st_size if part.is_file() else 0
    if have == artifact.size_bytes and have:
        return
    # If-Range: should the bytes ever be others, the server sends all of them.
    resume = 0 < have < artifact.size_bytes
    headers = {"Range": f"bytes={have}-", "If-Range": f'"{artifact.sha256}"'} if resume else {}
    with connection.stream(artifact.href, headers=headers) as response:
        with open(part, "ab" if response.status_code == 206 else "wb") as file:
            for piece in response.iter_bytes():
                file.write(piece)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
