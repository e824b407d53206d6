"""What every command shares: options, exit statuses, and how things are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from bitwright.errors import ApiError, BitwrightError, DamagedDownload, ServerUnreachable, WaitTimeout
from bitwright.records import Study, verdict_of

OK, USER_ERROR, FAILED, INFEASIBLE, TIMEOUT, GATE_FAILED = 0, 2, 3, 4, 5, 6
console = Console(stderr=True)

Url = Annotated[str | None, typer.Option(help="Server; default BITWRIGHT_URL, then this machine")]
Key = Annotated[
    str | None, typer.Option(help="API key; better given as BITWRIGHT_API_KEY, which no process list shows")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output")]
Timeout = Annotated[float | None, typer.Option(help="Longest wait in seconds", min=0)]
Batch = Annotated[
    int | None, typer.Option(min=1, help="How many samples at once; default: as the model is exported, else 1")
]
TargetIndex = Annotated[int, typer.Option(min=0, help="Which of the study's targets, counted from 0")]


@contextmanager
def exit_statuses() -> Iterator[None]:
    """The client's errors as exit statuses, said in one line on standard error."""
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


def exit_status(study: Study) -> int:
    """The exit status a finished study stands for."""
    if study.succeeded:
        return INFEASIBLE if study.is_infeasible else OK
    if study.error is not None and study.error.category == "user":
        return USER_ERROR
    return FAILED


def print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def tell(study: Study) -> None:
    """A finished study in a few lines."""
    out = Console()
    out.print(f"{study.id}: {study.state}", highlight=False)
    for verdict in study.verdicts:
        about = ", ".join(
            f"{name} {cell(value)}"
            for name, value in verdict.items()
            if name not in ("verdict", "kind") and isinstance(value, (int, float, str))
        )
        out.print(f"  [bold]{escape(verdict_of(verdict))}[/]  {escape(about)}", highlight=False)
    if study.error is not None:
        out.print(f"  [red]{escape(study.error.code)}[/]: {escape(study.error.message)}", highlight=False)
        if study.error.hint:
            out.print(f"  {escape(study.error.hint)}", highlight=False)


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def limit_of(text: str) -> float | str | dict[str, float]:
    """A budget as the server reads it, from a number, `0.6x` or `relative:0.5`."""
    kind, colon, fraction = text.partition(":")
    try:
        return {kind: float(fraction)} if colon else float(text)
    except ValueError:
        return text


def budgets_of(
    latency: str | None, size: str | None, bops: str | None, peak_memory: str | None
) -> dict[str, float | str | dict[str, float]]:
    asked = {"latency_ms": latency, "size_bytes": size, "bops": bops, "peak_memory_bytes": peak_memory}
    return {resource: limit_of(text) for resource, text in asked.items() if text is not None}


def tolerance_of(accuracy_drop: float | None, max_loss: float | None) -> dict[str, float]:
    promised = {"accuracy_drop": accuracy_drop, "loss": max_loss}
    return {name: value for name, value in promised.items() if value is not None}


def dims_of(pairs: list[str]) -> dict[str, int]:
    """`name=number` pairs; raises `BitwrightError` for anything else."""
    dims = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if not name or not value.isdigit():
            raise BitwrightError(f"--dim {pair!r} is not name=number")
        dims[name] = int(value)
    return dims


def losses_of(pairs: list[str]) -> dict[str, dict[str, str | int]]:
    """`output=kind` or `output=kind:class_axis`; raises `BitwrightError` for anything else."""
    losses: dict[str, dict[str, str | int]] = {}
    for pair in pairs:
        name, _, declared = pair.rpartition("=")
        kind, colon, axis = declared.partition(":")
        if not name or not kind or (colon and not axis.removeprefix("-").isdecimal()):
            raise BitwrightError(f"--loss {pair!r} is not output=kind or output=kind:axis")
        losses[name] = {"kind": kind, "class_axis": int(axis)} if colon else {"kind": kind}
    return losses
