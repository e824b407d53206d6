"""`bitwright`: submit a model, watch, and read what was found.

Exit status: 0 fine, 2 the user must change something, 3 the study or the server failed, 4 the budget cannot be
reached, 5 time is up, 6 a gate does not hold. With `--json` standard output is one JSON document and nothing else.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bitwright.cli_results import results
from bitwright.cli_shared import (
    AsJson,
    Batch,
    Key,
    Timeout,
    Url,
    budgets_of,
    cell,
    console,
    dims_of,
    exit_status,
    exit_statuses,
    losses_of,
    print_json,
    tell,
    tolerance_of,
)
from bitwright.client import Client
from bitwright.printed import MOST_LINES, PrintedLines
from bitwright.records import Study, verdict_of

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)


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
    batch: Batch = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    dim: Annotated[list[str] | None, typer.Option(help="Value of a dynamic dimension, as name=128")] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(help="What an output means: name=kind, or name=softmax_kl:1 with the class axis; mse, ignore, …"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    name: Annotated[str, typer.Option(help="A name for people")] = "",
    external_data: Annotated[list[Path] | None, typer.Option(help="External data file of the model")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the verdict")] = False,
    timeout: Timeout = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Upload a model and data, and start a study."""
    with exit_statuses(), Client(url, key=key) as client:
        study = client.submit(
            model,
            data=data,
            hardware=hardware or ["cpu-local"],
            budgets=budgets_of(latency, size, bops, peak_memory),
            tolerance=tolerance_of(accuracy_drop, max_loss),
            batch=batch,
            threads=threads,
            dims=dims_of(dim or []),
            options={"losses": losses_of(loss)} if loss else None,
            seed=seed,
            name=name,
            external_data=external_data or [],
        )
        console.print(f"{client.url}/studies/{study.id}", highlight=False)
        if wait:
            study = _watch(client, study.id, timeout)
        _finish(study, as_json, waited=wait)


@app.command()
def watch(
    study_id: str,
    log: Annotated[bool, typer.Option("--log", help="Show what its stages print, too")] = False,
    timeout: Timeout = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Follow a study to its end."""
    with exit_statuses(), Client(url, key=key) as client:
        _finish(_watch(client, study_id, timeout, with_log=log), as_json, waited=True)


@app.command("list")
def list_studies(
    state: str | None = None,
    hardware: str | None = None,
    model: str | None = None,
    limit: Annotated[int, typer.Option(min=1)] = 20,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List studies, newest first."""
    with exit_statuses(), Client(url, key=key) as client:
        found = list(islice(client.studies(state=state, hardware=hardware, model=model), limit))
    if as_json:
        print_json([study.raw for study in found])
        return
    table = Table("study", "name", "state", "verdict")
    for study in found:
        verdicts = ", ".join(verdict_of(verdict) for verdict in study.verdicts)
        table.add_row(study.id, escape(study.name), study.state, verdicts)
    Console().print(table)


@app.command()
def events(
    study_id: str,
    after: Annotated[int, typer.Option(min=0, help="Only those with a larger seq")] = 0,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show what happened to a study, oldest first."""
    with exit_statuses(), Client(url, key=key) as client:
        found = list(client.events(study_id, after))
    if as_json:
        print_json(found)
        return
    for event in found:
        about = ", ".join(f"{name} {cell(value)}" for name, value in event["data"].items() if value is not None)
        print(f"{event['at']}  {event['seq']:>4}  {event['kind']}  {about}")


@app.command()
def log(
    study_id: str,
    stage: Annotated[str | None, typer.Option(help="Only stages of this kind, as scan")] = None,
    lines: Annotated[int, typer.Option(min=1, max=MOST_LINES, help="The most of one stage")] = 40,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show the last lines that each stage of a study printed."""
    with exit_statuses(), Client(url, key=key) as client:
        found = client.log(study_id, stage=stage, lines=lines)
    if as_json:
        print_json(found)
        return
    for item in found:
        about = [f"target {item['target']}"] if item["target"] is not None else []
        about += [f"part {item['shard']}"] if item["shard"] is not None else []
        about += [f"attempt {item['attempt']}"] if item["attempt"] > 1 else []
        print(" · ".join([item["stage"], *about]))
        for line in [*(["…"] if item["is_cut"] else []), *item["lines"]]:
            print(f"  {line}")


@app.command()
def cancel(study_id: str, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Ask a study to stop."""
    with exit_statuses(), Client(url, key=key) as client:
        _finish(client.cancel(study_id), as_json, waited=False)


@app.command()
def retry(study_id: str, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Try a failed or cancelled study again, as a new one; what it finished is not computed again."""
    with exit_statuses(), Client(url, key=key) as client:
        _finish(client.retry(study_id), as_json, waited=False)


@app.command()
def clone(study_id: str, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Submit the same request once more as a new study."""
    with exit_statuses(), Client(url, key=key) as client:
        _finish(client.clone(study_id), as_json, waited=False)


def _watch(client: Client, study_id: str, timeout_s: float | None, *, with_log: bool = False) -> Study:
    printed = PrintedLines(client, study_id) if with_log else None
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("waiting", total=None, note="")

        def show(study: Study) -> None:
            for stage, line in printed.news() if printed is not None else ():
                bars.console.print(f"[dim]{escape(stage)}[/] {escape(line)}", highlight=False, soft_wrap=True)
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
        print_json(study.raw)
    elif waited:
        tell(study)
    else:
        print(f"{study.id}: {study.state}")
    if waited:
        raise typer.Exit(exit_status(study))


app.add_typer(results)

if __name__ == "__main__":
    app()
