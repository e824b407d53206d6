"""`bitwright-server measure`: measure this machine without a worker or a network, and hand the table in.

On a machine the server cannot reach: measure into a folder, carry the folder over, and hand it in from there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from service.settings import Settings
from workers.hardware import probe_profiles
from workers.supervisor import CODE_FOLDER

app = typer.Typer()
PROFILE, TABLE = "profile.json", "latency_table.json"
ANSWER_S = 120.0


@app.command()
def measure(
    out: Annotated[Path, typer.Option(help="Folder of profile.json and latency_table.json")] = Path("measured"),
    model: Annotated[Path | None, typer.Option(exists=True, help="Measure every op of this ONNX file")] = None,
    shapes: Annotated[list[str] | None, typer.Option(help="Measure these op shapes, or a file of them")] = None,
    hardware: Annotated[str, typer.Option(help="Profile of this machine, such as cpu-local")] = "cpu-local",
    threads: Annotated[int, typer.Option(min=1, help="Compute threads")] = 1,
    name: Annotated[str | None, typer.Option(help="The profile's name on the server, when its own is taken")] = None,
    server: Annotated[str | None, typer.Option(help="Hand the folder in at this address")] = None,
    key: Annotated[str | None, typer.Option(envvar="BITWRIGHT_API_KEY", help="Key of that server")] = None,
) -> None:
    """Measure this machine into a folder; with --server, hand it in. Rows the folder has are not measured again."""
    if model is None and not shapes and server is None:
        _fail("nothing to do", "give --model or --shapes to measure, --server to hand in what was measured")
    out.mkdir(parents=True, exist_ok=True)
    if model is not None:
        _run("search", "--model", str(model), "--out", str(out), hardware=hardware, threads=threads)
    if shapes:
        named = [word for shape in shapes for word in ("--shapes", shape)]
        _run("kernels", *named, "--out", str(out / TABLE), hardware=hardware, threads=threads)
    if model is not None or shapes:
        found = probe_profiles(Settings().kernels, [hardware])
        if not found:
            _fail(f"this machine has no profile {hardware}", "python -m kernels profile says why")
        (out / PROFILE).write_text(json.dumps(found[0], indent=1))
    typer.echo(f"{out}: {PROFILE}, {TABLE}")
    if server is not None:
        hand_in(out, server, key, name)


def _run(package: str, *arguments: str, hardware: str, threads: int) -> None:
    command = [sys.executable, "-m", package, "measure", "--hardware", hardware, "--threads", str(threads), *arguments]
    status = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(CODE_FOLDER)}, check=False).returncode
    if status != 0:
        raise typer.Exit(status)


def hand_in(folder: Path, server: str, key: str | None, name: str | None) -> None:
    """Describe the profile to the server unless it knows one of that name, and add the table to it."""
    profile, table = _document(folder / PROFILE), _document(folder / TABLE)
    slug = name or str(profile["slug"])
    profile["slug"] = table["profile"] = slug
    address = f"{server.rstrip('/')}/v1/hardware-profiles"
    _post(address, profile, key)
    answer = _post(f"{address}/{slug}/latency-tables", table, key)
    typer.echo(f"{server}: {slug} version {answer['version']} with {answer['rows']} rows")


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        _fail(f"{path} is missing", "measure into this folder first")
    except ValueError as error:
        _fail(f"{path} is not JSON: {error}", "measure into this folder again")
    return dict(document)


def _post(address: str, document: dict[str, Any], key: str | None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(address, json.dumps(document).encode(), headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        with error:
            problem = _problem(error.read())
        _fail(f"{problem.get('code', error.code)}: {problem.get('detail', error.reason)}", problem.get("hint", ""))
    except (OSError, ValueError) as error:
        _fail(f"{address}: {error}", "is this the address of a Bitwright server?")


def _problem(body: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(body))
    except ValueError:
        return {}


def _fail(what: str, hint: str) -> NoReturn:
    typer.echo(f"{what}\n{hint}".strip(), err=True)
    raise typer.Exit(2)
