"""`bitwright-server backup|restore|gc`: what an operator does with database and blobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from service.blobs import BlobMissing, Blobs, BlobStoreAway
from service.settings import Settings
from service.store.backup import BackupError, restore_backup, write_backup
from service.store.collect import collect_garbage
from service.store.database import Database
from service.store.migrate import is_current

app = typer.Typer()
HOUR_S = 3600.0
LEAST_GRACE_H = 1.0
DataFolder = Annotated[Path | None, typer.Option(help="Folder of database and files; default .bitwright")]


@contextmanager
def _opened(data_folder: Path | None) -> Iterator[tuple[Settings, Database, Blobs]]:
    settings = Settings() if data_folder is None else Settings(data_folder=data_folder)
    database = Database(settings.resolved_database_url)
    try:
        yield settings, database, Blobs(settings.resolved_blob_url)
    except (BackupError, BlobMissing, BlobStoreAway) as error:
        typer.echo(f"{error}\n{getattr(error, 'hint', '')}".strip(), err=True)
        raise typer.Exit(2) from None
    finally:
        database.close()


@app.command()
def backup(file: Annotated[Path, typer.Argument(help="The tar file to write")], data_folder: DataFolder = None) -> None:
    """Write database and files into one archive. The server may run meanwhile."""
    with _opened(data_folder) as (_, database, blobs):
        manifest = write_backup(database, blobs, file)
    rows = sum(table.rows for table in manifest.tables)
    typer.echo(f"{file}: {rows} rows, {manifest.blob_count} files, {manifest.blob_bytes / 1e6:.1f} MB")
    if manifest.missing_blobs:
        typer.echo(f"{len(manifest.missing_blobs)} file(s) are named and not in the store:", err=True)
        typer.echo("\n".join(manifest.missing_blobs), err=True)
        raise typer.Exit(1)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What `backup` wrote")],
    data_folder: DataFolder = None,
) -> None:
    """Fill an empty database and store from an archive. SQLite or PostgreSQL, whichever wrote it."""
    with _opened(data_folder) as (settings, database, blobs):
        settings.upload_folder.mkdir(parents=True, exist_ok=True)
        manifest = restore_backup(file, database, blobs, settings.upload_folder)
    rows = sum(table.rows for table in manifest.tables)
    typer.echo(f"restored {rows} rows and {manifest.blob_count} files of version {manifest.version}")


@app.command()
def gc(
    grace_hours: Annotated[float, typer.Option(min=LEAST_GRACE_H, help="Keep what is younger than this")] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell and remove nothing")] = False,
    data_folder: DataFolder = None,
) -> None:
    """Remove files that nothing in the database names any more."""
    with _opened(data_folder) as (_, database, blobs):
        if not is_current(database):
            typer.echo("the database is not at this version's schema; run: bitwright-server migrate", err=True)
            raise typer.Exit(2)
        done = collect_garbage(database, blobs, grace_s=grace_hours * HOUR_S, dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    typer.echo(
        f"{verb} {done.removed} files, {done.removed_bytes / 1e6:.1f} MB; {done.kept_young} are too young to judge"
    )
