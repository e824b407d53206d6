"""`bitwright-server keys`: make, list and revoke the keys of the API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from sqlalchemy.exc import SQLAlchemyError

from service.keys.keys import create_key, list_keys, revoke_key
from service.settings import Settings
from service.store.database import Database
from service.store.migrate import migrate
from service.store.models import ApiKeyRow
from service.times import iso

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the keys of the API.")
DataFolder = Annotated[Path | None, typer.Option(help="Folder of the database; default .bitwright")]
DAY_S = 86400.0


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who or what will use it")],
    scope: Annotated[
        list[str] | None, typer.Option(help="read, write, admin, or one such as studies:write; may be repeated")
    ] = None,
    days: Annotated[
        float | None, typer.Option(min=0.001, help="How long it may be used; for ever when left out")
    ] = None,
    data_folder: DataFolder = None,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    with _database(data_folder) as database:
        migrate(database)
        try:
            with database.write() as session:
                row, text = create_key(
                    session, name=name, scopes=scope or ["write"], lifetime_s=None if days is None else days * DAY_S
                )
        except ValueError as error:
            _refuse(str(error))
    typer.echo(f"key {row.id} may: {' '.join(row.scopes)}", err=True)
    typer.echo(text)


@app.command("list")
def list_all(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array")] = False,
    data_folder: DataFolder = None,
) -> None:
    """All keys with their scopes and last use."""
    with _database(data_folder) as database, database.read() as session:
        shown = [_shown(row) for row in list_keys(session)]
    if as_json:
        typer.echo(json.dumps(shown, indent=1))
        return
    for key in shown:
        end = f"revoked {key['revoked_at']}" if key["revoked_at"] else f"last used {key['last_used_at'] or 'never'}"
        typer.echo(f"{key['prefix']}  {key['name']}  {' '.join(key['scopes'])}  made {key['created_at']}  {end}")


@app.command()
def revoke(
    prefix: Annotated[str, typer.Argument(help="The part between bw_ and the second underscore")],
    data_folder: DataFolder = None,
) -> None:
    """End a key now, and every login made with it."""
    with _database(data_folder) as database, database.write() as session:
        if not revoke_key(session, prefix):
            _refuse(f"there is no key {prefix!r}; list them: bitwright-server keys list")
    typer.echo(f"key {prefix} is revoked")


@contextmanager
def _database(data_folder: Path | None) -> Iterator[Database]:
    settings = Settings() if data_folder is None else Settings(data_folder=data_folder)
    database = Database(settings.resolved_database_url)
    try:
        yield database
    except SQLAlchemyError as error:
        _refuse(f"the database does not answer or has no tables yet (bitwright-server migrate): {error}")
    finally:
        database.close()


def _shown(row: ApiKeyRow) -> dict[str, object]:
    return {
        "prefix": row.id,
        "name": row.name,
        "scopes": row.scopes,
        "created_at": iso(row.created_at),
        "expires_at": iso(row.expires_at),
        "revoked_at": iso(row.revoked_at),
        "last_used_at": iso(row.last_used_at),
    }


def _refuse(why: str) -> NoReturn:
    typer.echo(why, err=True)
    raise typer.Exit(2)
