"""Commands about what a study found: front, download, compare, gate, audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bitwright.audit import audit_target
from bitwright.cli_shared import (
    FAILED,
    GATE_FAILED,
    INFEASIBLE,
    USER_ERROR,
    AsJson,
    Batch,
    Key,
    TargetIndex,
    Timeout,
    Url,
    budgets_of,
    cell,
    console,
    dims_of,
    exit_status,
    exit_statuses,
    print_json,
    tell,
)
from bitwright.client import Client
from bitwright.errors import BitwrightError
from bitwright.gate import Check, Thresholds, check_report
from bitwright.records import Allocation

results = typer.Typer()


@results.command()
def front(study_id: str, target: TargetIndex = 0, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Show the Pareto front of a study."""
    with exit_statuses(), Client(url, key=key) as client:
        found = client.front(study_id, target)
    if as_json:
        print_json(found)
        return
    table = Table("cost", "loss", "precisions", title=f"{found.get('hardware', '')}: front, predicted")
    for point in found.get("front", []):
        counts = Counter(point.get("precisions", {}).values())
        mix = ", ".join(f"{count} × {precision}" for precision, count in counts.most_common())
        table.add_row(cell(point.get("cost")), cell(point.get("loss")), escape(mix))
    Console().print(table)


@results.command()
def allocate(
    study_id: str,
    latency: Annotated[str | None, typer.Option(help="Milliseconds, or 0.6x of full precision")] = None,
    size: Annotated[str | None, typer.Option(help="Bytes, or 0.5x of full precision")] = None,
    bops: Annotated[str | None, typer.Option(help="Bit operations, or 0.5x of full precision")] = None,
    peak_memory: Annotated[str | None, typer.Option(help="Bytes, or 0.5x of full precision")] = None,
    target: TargetIndex = 0,
    hardware: Annotated[str | None, typer.Option(help="Another profile than the study's target")] = None,
    batch: Batch = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    dim: Annotated[list[str] | None, typer.Option(help="Value of a dynamic dimension, as name=128")] = None,
    within: Annotated[
        float | None, typer.Option("--within", help="Relative gap at which the stored front is answer enough")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Solve it, even where the stored front has an answer")] = False,
    timeout: Timeout = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Ask a solved study for the allocation under other budgets; answered from what is stored, without a new scan."""
    with exit_statuses(), Client(url, key=key) as client:
        found = client.allocate(
            study_id,
            budgets_of(latency, size, bops, peak_memory),
            target=target,
            hardware=hardware,
            batch=batch,
            threads=threads,
            dims=dims_of(dim or []),
            within=within,
            exact=exact,
            timeout_s=timeout,
        )
    if as_json:
        print_json(found.raw)
    else:
        _tell_allocation(found)
    if found.result is None:
        raise typer.Exit(USER_ERROR if found.error and found.error.category == "user" else FAILED)
    if found.is_infeasible:
        raise typer.Exit(INFEASIBLE)


@results.command()
def allocations(study_id: str, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """List the allocations a study solved and those asked of it later."""
    with exit_statuses(), Client(url, key=key) as client:
        found = client.allocations(study_id)
    if as_json:
        print_json(found)
        return
    table = Table("allocation", "from", "state", "loss", "predicted")
    for one in found["planned"]:
        table.add_row(escape(one["name"]), one["source"], "planned", cell(one["surrogate_loss"]), _costs(one))
    for one in found["items"]:
        result = one["result"] or {}
        table.add_row(one["id"], one["origin"], one["state"], cell(result.get("surrogate_loss")), _costs(result))
    Console().print(table)


@results.command()
def download(
    study_id: str,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files")] = Path("."),
    target: Annotated[int | None, typer.Option(min=0)] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Download what a study made, checked by hash; what broke off is gone on with."""
    with exit_statuses(), Client(url, key=key) as client:
        paths = client.download(study_id, output, target)
        if not paths:
            console.print("the study has no files; see: bitwright watch " + study_id)
            raise typer.Exit(USER_ERROR)
    if as_json:
        print_json([str(path) for path in paths])
    else:
        for path in paths:
            print(path)


@results.command()
def compare(study_ids: list[str], url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Set finished studies side by side."""
    with exit_statuses(), Client(url, key=key) as client:
        rows = client.compare(study_ids)
    if as_json:
        print_json(rows)
        return
    table = Table("study", "hardware", "verdict", "chosen", "latency, ms", "size, bytes", "loss", "accuracy")
    for row in rows:
        texts = [row["name"], row["hardware"], row["verdict"], row["chosen"] or "–"]
        figures = [row["latency_ms"], row["size_bytes"], row["loss"], row["accuracy"]]
        table.add_row(*(escape(str(text)) for text in texts), *(cell(figure) for figure in figures))
    Console().print(table)


@results.command()
def gate(
    study_id: str,
    max_latency_ms: Annotated[float | None, typer.Option(min=0)] = None,
    max_latency_ratio: Annotated[float | None, typer.Option(min=0, help="Of measured full precision")] = None,
    max_size_bytes: Annotated[float | None, typer.Option(min=0)] = None,
    max_size_ratio: Annotated[float | None, typer.Option(min=0, help="Of full precision")] = None,
    max_loss: Annotated[float | None, typer.Option(min=0, help="In the loss's own unit")] = None,
    min_accuracy: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    max_accuracy_drop: Annotated[float | None, typer.Option(min=0, max=1, help="Below full precision")] = None,
    max_prediction_error: Annotated[float | None, typer.Option(min=0, help="Mean leave-one-out error, 0.05")] = None,
    chosen: Annotated[bool, typer.Option("--chosen", help="Only the verdict `chosen` passes")] = False,
    baseline: Annotated[str | None, typer.Option(help="Study to compare with, hardware by hardware")] = None,
    max_regression: Annotated[float, typer.Option(min=0, help="Growth allowed against the baseline")] = 0.05,
    at_median: Annotated[bool, typer.Option("--at-median", help="Judge values, not the ends of intervals")] = False,
    timeout: Timeout = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Wait for a study and hold its measured figures to thresholds: exit status 6 when one does not hold.

    Latency, loss and accuracy are judged at the pessimistic end of their 95 % interval.
    """
    limits = Thresholds(
        latency_ms=max_latency_ms,
        latency_ratio=max_latency_ratio,
        size_bytes=max_size_bytes,
        size_ratio=max_size_ratio,
        loss=max_loss,
        accuracy=min_accuracy,
        accuracy_drop=max_accuracy_drop,
        prediction_error=max_prediction_error,
        chosen=chosen,
        regression=max_regression if baseline else None,
        at_median=at_median,
    )
    with exit_statuses(), Client(url, key=key) as client:
        if limits.ask_nothing:
            raise BitwrightError("a gate needs a threshold, for example --max-latency-ratio 0.7 (see --help)")
        study = client.wait(study_id, timeout_s=timeout)
        if not study.succeeded:
            tell(study)
            raise typer.Exit(exit_status(study))
        before = {one["hardware"]: one for one in _targets(client, baseline)} if baseline else {}
        checks = [
            check
            for one in _targets(client, study_id)
            for check in check_report(one, limits, before.get(one["hardware"]))
        ]
    holds = all(check.holds for check in checks)
    if as_json:
        print_json({"study": study_id, "holds": holds, "checks": [asdict(check) for check in checks]})
    else:
        _print_checks(checks)
    if not holds:
        raise typer.Exit(GATE_FAILED)


@results.command()
def audit(study_id: str, target: TargetIndex = 0, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Tell what really runs quantized, what stays in float and why, and what the runtime did not run as exported."""
    with exit_statuses(), Client(url, key=key) as client:
        found = audit_target(_only_target(client.report(study_id, target)))
    if as_json:
        print_json(found)
        return
    out = Console()
    share = 100 * found["quantized_weight_share"]
    out.print(
        f"{escape(found['hardware'])} ({escape(found['runtime'])}): {share:.1f} % of the weights run quantized",
        highlight=False,
    )
    mix = Table("precision", "layers", "weights")
    for name, count in found["precisions"].items():
        mix.add_row(escape(name), str(count["layers"]), f"{100 * count['weight_share']:.1f} %")
    out.print(mix)
    for title, rows in (("stays in float", found["in_float"]), ("discarded by the audit", found["discarded"])):
        if rows:
            table = Table(title, "why")
            for row in rows:
                table.add_row(escape(row["name"]), escape(row["reason"]))
            out.print(table)


def _tell_allocation(found: Allocation) -> None:
    out = Console()
    if found.result is None:
        why = f"{found.error.code}: {found.error.message}" if found.error else found.state
        console.print(f"[red]{escape(why)}", highlight=False)
        return
    result = found.result
    counts = Counter((result["precisions"] or {}).values())
    mix = ", ".join(f"{count} × {precision}" for precision, count in counts.most_common()) or "nothing quantized"
    out.print(f"{found.id} ({found.origin}, {escape(result['metric'])}): {escape(mix)}", highlight=False)
    gap = "" if result["gap"] is None else f", at most {100 * result['gap']:.2g} % above the optimum"
    out.print(f"  predicted loss {cell(result['surrogate_loss'])}{gap}; {escape(_costs(result))}", highlight=False)
    if result["infeasible"]:
        out.print("  [yellow]the budgets cannot be met; this is the nearest that can", highlight=False)


def _costs(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {cell(value)}" for name, value in (result.get("predicted") or {}).items())


def _targets(client: Client, study_id: str) -> list[dict[str, Any]]:
    count = len(client.study(study_id).raw["spec"]["targets"])
    return [_only_target(client.report(study_id, index)) for index in range(count)]


def _only_target(report: dict[str, Any]) -> dict[str, Any]:
    """The one target a report per target holds."""
    return dict(report["targets"][0])


def _print_checks(checks: list[Check]) -> None:
    table = Table("", "hardware", "what", "value", "limit")
    for check in checks:
        mark = "[green]holds" if check.holds else "[red]fails"
        value = "not measured" if check.value is None else cell(check.value)
        table.add_row(mark, escape(check.target), check.name, value, cell(check.limit))
    Console().print(table)
