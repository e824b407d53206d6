"""The command line of the search, without service or database.

    python -m search model.onnx --data d.npz --hardware cpu-local --latency 0.6x
    python -m search measure --model model.onnx --hardware cpu-local --out measured/
    python -m search audit any.onnx

Exit status: 0 verdict reached, 2 the submission is wrong, 4 the budgets cannot be met.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kernels.errors import KernelsError
from kernels.latency_table import LatencyTable
from kernels.operating_point import OperatingPoint
from kernels.registry import backend_for, load_profile
from search.artifact.audit import audit_file
from search.errors import BadSubmission, SearchError
from search.latency.model import measure_model
from search.onnx_import import external_files, load_graph
from search.pipeline import STAGES
from search.study import parse_study, require_goals

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
console = Console(stderr=True)
USER_ERROR, INFEASIBLE = 2, 4

Threads = Annotated[int, typer.Option(help="Compute threads of the operating point.")]
Batch = Annotated[
    int | None, typer.Option(min=1, help="Batch size of the operating point; default: the export's own, else 1.")
]
Dims = Annotated[list[str] | None, typer.Option("--dim", help="Value of a dynamic dimension, name=value.")]
Hardware = Annotated[str, typer.Option(help="Hardware profile: auto, cpu-local, …-openvino, a GPU, or a file.")]


@app.command()
def run(
    model: Annotated[Path, typer.Argument(help="The ONNX file.")],
    data: Annotated[Path | None, typer.Option(help="Samples: .npz or .safetensors named after the inputs.")] = None,
    hardware: Annotated[list[str] | None, typer.Option(help="Hardware profile; may be given several times.")] = None,
    latency: Annotated[
        str | None,
        typer.Option(
            help="Latency budget: milliseconds, 0.6x of full precision, or relative:0.5 of what can be reached."
        ),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Size budget: bytes, 0.3x or relative:0.5.")] = None,
    bops: Annotated[str | None, typer.Option(help="Budget of bit operations, 0.3x or relative:0.5.")] = None,
    memory: Annotated[str | None, typer.Option(help="Budget of peak memory: bytes, 0.6x or relative:0.5.")] = None,
    accuracy_drop: Annotated[float | None, typer.Option(help="Instead of budgets: accuracy that may be lost.")] = None,
    max_loss: Annotated[float | None, typer.Option(help="Instead of budgets: the fastest within this loss.")] = None,
    batch: Batch = None,
    threads: Threads = 1,
    dims: Dims = None,
    pin: Annotated[list[str] | None, typer.Option(help="Fix a layer: name=precision.")] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(help="What an output means: name=kind, or name=softmax_kl:1 with the class axis; mse, ignore, …"),
    ] = None,
    estimates: Annotated[
        bool, typer.Option("--estimates", help="Estimate latency on hardware that is not at hand; the verdict says so.")
    ] = False,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Folder for the report and the artifacts.")] = Path("bitwright-out"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
) -> None:
    """Search one model to its verdict: scan, measure, solve, build, run, choose."""
    asked = {"latency_ms": latency, "size_bytes": size, "bops": bops, "peak_memory_bytes": memory}
    budgets = {resource: _limit(text) for resource, text in asked.items() if text is not None}
    target: dict[str, Any] = {
        "operating_point": {"batch": batch, "threads": threads, "dims": _pairs(dims or [], int, "number")},
        "budgets": budgets,
    }
    promised = {"accuracy_drop": accuracy_drop, "loss": max_loss}
    if tolerance := {name: value for name, value in promised.items() if value is not None}:
        target["tolerance"] = tolerance
    spec = {
        "targets": [{**target, "hardware": name} for name in hardware or ["cpu-local"]],
        "seed": seed,
        "options": {
            "pins": _pairs(pin or [], str, "precision"),
            "losses": _pairs(loss or [], _declaration, "kind[:axis]"),
            "estimates": estimates,
        },
    }
    with tempfile.TemporaryDirectory(prefix="bitwright-") as scratch:
        folder = Path(scratch)
        with _clear_errors():
            require_goals(parse_study(spec))
            _copy_inputs(model, data, folder)
            for name, stage in STAGES.items():
                with _bar(name) as progress:
                    done = stage(spec, folder, progress)
        out.mkdir(parents=True, exist_ok=True)
        for name in done["outputs"]:
            shutil.move(folder / name, out / name)
        report = json.loads((out / "report.json").read_text())
    if as_json:
        print(json.dumps(done["summary"]))
    else:
        _show(report, out)
    if all(verdict["verdict"] == "infeasible" for verdict in done["summary"]["verdicts"]):
        raise typer.Exit(INFEASIBLE)


@app.command()
def measure(
    model: Annotated[Path, typer.Option(help="The ONNX file.")],
    hardware: Hardware = "cpu-local",
    out: Annotated[
        Path, typer.Option(help="Folder for latency_table.json and latency_fit.json, or the table's own .json file.")
    ] = Path("measured"),
    batch: Batch = None,
    threads: Threads = 1,
    dims: Dims = None,
    seed: int = 0,
) -> None:
    """Only the device part: every distinct op of the model, whole networks, and the fit between them.

    A table that is already there is continued: its rows are not measured again, and it is saved as it grows.
    """
    table_path = out if out.suffix == ".json" else out / "latency_table.json"
    fit_path = table_path.with_name("latency_fit.json" if out.suffix != ".json" else f"{out.stem}_fit.json")

    def save(table: LatencyTable) -> None:
        partial = table_path.with_suffix(".partial")
        partial.write_text(json.dumps(table.to_json(), indent=1))
        partial.replace(table_path)

    with _clear_errors():
        table_path.parent.mkdir(parents=True, exist_ok=True)
        profile = load_profile(hardware)
        graph = load_graph(model)
        point = OperatingPoint(
            batch=batch or graph.fixed_batch or 1,
            threads=threads,
            dims=tuple(sorted(_pairs(dims or [], int, "number").items())),
        )
        backend = backend_for(profile)
        with _bar("measure") as progress:
            measured = measure_model(
                graph,
                profile,
                backend,
                point,
                table=LatencyTable.loads(table_path.read_text()) if table_path.exists() else None,
                seed=seed,
                progress=lambda done, total, what: progress(done, total, what, "measure"),
                checkpoint=save,
            )
    save(measured.table)
    fit_path.write_text(json.dumps(measured.fit.to_json(), indent=1))
    for name, lacks in backend.missing.items():
        console.print(f"not compared: {name}: {lacks}", markup=False)
    console.print(f"{len(measured.table.rows)} rows, {measured.fit.accuracy} → {out}")


@app.command()
def audit(
    model: Annotated[Path, typer.Argument(help="Any ONNX file.")],
    runtime: Annotated[str, typer.Option(help="onnxruntime or openvino.")] = "onnxruntime",
    threads: Threads = 1,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """What a runtime really executes of a file: which layers run quantized, which do not, and why not."""
    with _clear_errors():
        found = audit_file(model, runtime, threads)
    if as_json:
        print(json.dumps(found.to_json()))
        return
    printed = Console()
    table = Table("layer", "weight", "bits", "asked for", "executed", "quantized")
    for row in found.layers:
        cells = (row.layer, row.weight, str(row.bits), row.asked, row.executed or "–")
        table.add_row(*map(escape, cells), "yes" if row.is_quantized else "no")
    printed.print(table)
    for finding in found.findings:
        printed.print(f"• {finding.sentence}", markup=False)
    if found.ok:
        printed.print("every layer ran as the file asks")


def _copy_inputs(model: Path, data: Path | None, folder: Path) -> None:
    for path in filter(None, (model, data)):
        if not path.is_file():
            raise BadSubmission(f"there is no file {path}", hint="check the path", code="file_missing")
    shutil.copyfile(model, folder / "model.onnx")
    for location in external_files(model):
        if (model.parent / location).is_file():
            (folder / location).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model.parent / location, folder / location)
    if data is not None:
        shutil.copyfile(data, folder / f"dataset{data.suffix}")


def _limit(text: str) -> object:
    """A budget's value from the command line: `relative:0.5`, or what `parse_budget` reads from text."""
    kind, colon, fraction = text.partition(":")
    try:
        return {kind: float(fraction)} if colon else text
    except ValueError:
        return text


def _declaration(text: str) -> dict[str, Any]:
    """`kind` or `kind:class_axis`."""
    kind, colon, axis = text.partition(":")
    return {"kind": kind, "class_axis": int(axis)} if colon else {"kind": kind}


def _pairs(items: list[str], read: Callable[[str], Any], form: str) -> dict[str, Any]:
    found = {}
    for item in items:
        name, equals, value = item.rpartition("=")
        try:
            found[name] = read(value)
        except ValueError:
            equals = ""
        if not (name and equals):
            raise typer.BadParameter(f"{item!r} is not name={form}")
    return found


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except (SearchError, KernelsError) as error:
        console.print(f"[bold red]{error.code}[/]", end=" ")
        console.print(error.message, markup=False, highlight=False)
        if error.hint:
            console.print(f"hint: {error.hint}", markup=False, highlight=False)
        raise typer.Exit(USER_ERROR) from error


@contextmanager
def _bar(stage: str) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=not sys.stderr.isatty()) as progress:
        task = progress.add_task(stage, total=None)

        def report(done: int, total: int, unit: str, message: str) -> None:
            progress.update(task, completed=done, total=total, description=f"{stage}: {message}"[:48])

        yield report
        progress.update(task, completed=1, total=1)


def _show(report: dict[str, Any], out: Path) -> None:
    for target in report["targets"]:
        table = Table("assembly", "measured ms", "predicted ms", "MB", f"loss (select), {report['loss']['unit']}")
        for row in target["assemblies"]:
            measured = f"{row['measured']['median_ms']:.3f}" if row["measured"] else "–"
            table.add_row(
                ("★ " if row["name"] == target["verdict"]["chosen"] else "") + row["name"],
                measured,
                f"{row['predicted'].get('latency_ms', float('nan')):.3f}",
                f"{row['size_bytes'] / 1e6:.3f}",
                "discarded" if row["select"] is None else f"{row['select']['loss']['value']:.3g}",
            )
        console.print(table)
        console.print(f"{target['hardware']}: {target['verdict']['kind']}: {target['verdict']['sentence']}")
    console.print(f"report and artifacts: {out}")


def main() -> None:
    """`python -m search model.onnx …` is short for `python -m search run model.onnx …`."""
    commands = {"run", "measure", "audit"}
    if len(sys.argv) > 1 and sys.argv[1] not in commands and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, "run")
    app()


if __name__ == "__main__":
    main()
