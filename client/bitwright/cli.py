"""`bitwright`: submit, watch, front, download.

Exit status: 0 fine, 2 the user must change something, 3 the study or the server failed, 4 the budget cannot be
reached, 5 time is up. With `--json` standard output is one JSON document and nothing else.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bitwright.client import Client
from bitwright.errors import ApiError, BitwrightError, DamagedDownload, ServerUnreachable, WaitTimeout
from bitwright.records import Study, verdict_of

OK, USER_ERROR, FAILED, INFEASIBLE, TIMEOUT = 0, 2, 3, 4, 5
app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
console = Console(stderr=True)

Url = Annotated[str | None, typer.Option(help="Server; default BITWRIGHT_URL, then this machine")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output")]
Timeout = Annotated[float | None, typer.Option(help="Longest wait in seconds", min=0)]


@contextmanager
def _exit_status() -> Iterator[None]:
    try:
        yield
    except WaitTimeout as error:
        console.print(escape(str(error)))
        raise typer.Exit(TIMEOUT) from None
    except (ServerUnreachable, DamagedDownload) as error:
        console.print(f"[red]{escape(str(error))}")
        raise typer.Exit(FAILED) from None
    except ApiError as error:
        console.print(f"[red]{escape(error.code)}:[/] {escape(str(error))}")
        raise typer.Exit(FAILED if error.status >= 500 else USER_ERROR) from None
    except BitwrightError as error:
        console.print(f"[red]{escape(str(error))}")
        raise typer.Exit(USER_ERROR) from None


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


@app.command()
def submit(
    model: Annotated[str, typer.Argument(help="ONNX file, or the id of a model")],
    data: Annotated[str | None, typer.Option(help=".npz or .safetensors file, or the id of a dataset")] = None,
    hardware: Annotated[list[str] | None, typer.Option(help="Hardware profile; repeat for several")] = None,
    latency: Annotated[str | None, typer.Option(help="Milliseconds, or 0.6x of full precision")] = None,
    size: Annotated[str | None, typer.Option(help="Bytes, or 0.5x of full precision")] = None,
    bops: Annotated[str | None, typer.Option(help="Bit operations, or 0.5x of full precision")] = None,
    peak_memory: Annotated[str | None, typer.Option(help="Bytes, or 0.5x of full precision")] = None,
    accuracy_drop: Annotated[
        float | None, typer.Option(help="Instead of budgets: the fastest that loses at most this share of answers")
    ] = None,
    max_loss: Annotated[float | None, typer.Option(help="Instead of budgets: the fastest within this loss")] = None,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    dim: Annotated[list[str] | None, typer.Option(help="Value of a dynamic dimension, as name=128")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    name: Annotated[str, typer.Option(help="A name for people")] = "",
    external_data: Annotated[list[Path] | None, typer.Option(help="External data file of the model")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the verdict")] = False,
    timeout: Timeout = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Upload a model and data, and start a study."""
    asked = {"latency_ms": latency, "size_bytes": size, "bops": bops, "peak_memory_bytes": peak_memory}
    promised = {"accuracy_drop": accuracy_drop, "loss": max_loss}
    with _exit_status(), Client(url) as client:
        study = client.submit(
            model,
            data=data,
            hardware=hardware or ["cpu-local"],
            budgets={resource: _budget(text) for resource, text in asked.items() if text is not None},
            tolerance={name: value for name, value in promised.items() if value is not None},
            batch=batch,
            threads=threads,
            dims=_dims(dim or []),
            seed=seed,
            name=name,
            external_data=external_data or [],
        )
        console.print(f"{study.id}  {client.url}/studies/{study.id}", highlight=False)
        if wait:
            study = _watch(client, study.id, timeout)
        _finish(study, as_json, waited=wait)


@app.command()
def watch(study_id: str, timeout: Timeout = None, url: Url = None, as_json: AsJson = False) -> None:
    """Follow a study to its end."""
    with _exit_status(), Client(url) as client:
        _finish(_watch(client, study_id, timeout), as_json, waited=True)


@app.command()
def front(
    study_id: str, target: Annotated[int, typer.Option(min=0)] = 0, url: Url = None, as_json: AsJson = False
) -> None:
    """Show the Pareto front of a study."""
    with _exit_status(), Client(url) as client:
        found = client.front(study_id, target)
    if as_json:
        _print_json(found)
        return
    table = Table("cost", "loss", "precisions", title=f"{found.get('hardware', '')}: front, predicted")
    for point in found.get("front", []):
        counts = Counter(point.get("precisions", {}).values())
        mix = ", ".join(f"{count} × {precision}" for precision, count in counts.most_common())
        table.add_row(_cell(point.get("cost")), _cell(point.get("loss")), escape(mix))
    Console().print(table)


@app.command()
def download(
    study_id: str,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files")] = Path("."),
    target: Annotated[int | None, typer.Option(min=0)] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Download what a study made, checked by hash."""
    with _exit_status(), Client(url) as client:
        paths = client.download(study_id, output, target)
        if not paths:
            console.print("the study has no files; see: bitwright watch " + study_id)
            raise typer.Exit(USER_ERROR)
    if as_json:
        _print_json([str(path) for path in paths])
    else:
        for path in paths:
            print(path)


def _watch(client: Client, study_id: str, timeout_s: float | None) -> Study:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("waiting", total=None, note="")

        def show(study: Study) -> None:
            progress = study.progress
            note = study.waiting_for or ""
            if progress is not None and not note:
                eta = f", {progress.eta_s:.0f} s left" if progress.eta_s is not None else ""
                note = f"{progress.done}/{progress.total} {progress.unit}{eta}"
            bars.update(
                bar,
                description=escape(study.stage or study.state),
                note=escape(note),
                completed=progress.done if progress else 0,
                total=progress.total if progress else None,
            )

        return client.wait(study_id, timeout_s=timeout_s, on_change=show)


def _finish(study: Study, as_json: bool, *, waited: bool) -> None:
    if as_json:
        _print_json(study.raw)
    elif waited:
        _tell(study)
    if waited:
        raise typer.Exit(exit_status(study))


def exit_status(study: Study) -> int:
    """The exit status a finished study stands for."""
    if study.succeeded:
        return INFEASIBLE if study.is_infeasible else OK
    if study.error is not None and study.error.category == "user":
        return USER_ERROR
    return FAILED


def _tell(study: Study) -> None:
    out = Console()
    out.print(f"{study.id}: {study.state}", highlight=False)
    for verdict in study.verdicts:
        about = ", ".join(
            f"{name} {_cell(value)}"
            for name, value in verdict.items()
            if name not in ("verdict", "kind") and isinstance(value, (int, float, str))
        )
        out.print(f"  [bold]{escape(verdict_of(verdict))}[/]  {escape(about)}", highlight=False)
    if study.error is not None:
        out.print(f"  [red]{escape(study.error.code)}[/]: {escape(study.error.message)}", highlight=False)
        if study.error.hint:
            out.print(f"  {escape(study.error.hint)}", highlight=False)


def _budget(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _dims(pairs: list[str]) -> dict[str, int]:
    dims = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if not name or not value.isdigit():
            raise BitwrightError(f"--dim {pair!r} is not name=number")
        dims[name] = int(value)
    return dims


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    app()
