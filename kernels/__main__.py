"""Command line: `python -m kernels measure` fills a latency table, `profile` shows what a device runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from kernels.backends.base import Backend
from kernels.errors import BadTable, KernelsError
from kernels.hardware_profile import HardwareProfile
from kernels.latency_table import LatencyTable
from kernels.microbench import Measured, Pair, empty_table, measure_missing
from kernels.op_shape import OpShape, parse_op_shape
from kernels.precision import FP32, Precision
from kernels.registry import backend_for, load_profile

USER_ERROR = 2
INTERRUPTED = 130
_MAX_SHAPE_FILE_BYTES = 10_000_000

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Measure what single layers cost on this machine.",
)  # fmt: skip
_out = Console()
_err = Console(stderr=True)

Hardware = Annotated[str, typer.Option(help="auto, cpu-local, cpu-local-openvino, h200 …, or a profile's .json file")]


@app.command()
def measure(
    more: Annotated[list[str] | None, typer.Argument(metavar="[SHAPE]...", help="more shapes")] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(help="an op shape such as linear_m1_k768_n3072_b1, or a file: one shape a line, or a JSON list"),
    ] = None,
    hardware: Hardware = "cpu-local",
    threads: Annotated[int, typer.Option(min=1, help="compute threads of the operating point")] = 1,
    precisions: Annotated[
        str, typer.Option(help="comma-separated, e.g. fp32,w8a8; default: all that the profile runs")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="latency table to write; one that exists is continued")] = None,
    command: Annotated[
        str, typer.Option(help="time with this command; {model} stands for the ONNX file, it prints milliseconds")
    ] = "",
) -> None:
    """Measure every precision of the shapes; rows the table already has are not measured again."""
    try:
        profile = load_profile(hardware)
        ops = read_shapes([*(shapes or []), *(more or [])])
        pairs = choose_pairs(profile, ops, [name.strip() for name in precisions.split(",") if name.strip()])
        table = _read_table(out, profile)
        backend = _backend(profile, command)
        measured = _measure(backend, profile, pairs, threads, table, out)
    except KernelsError as error:
        _fail(error)
    except KeyboardInterrupt:
        kept = f"; {out} holds what was measured, run again to continue" if out and out.exists() else ""
        _err.print(f"interrupted{kept}")
        raise typer.Exit(INTERRUPTED) from None
    _show(measured, pairs, threads)
    for name, lacks in backend.missing.items():
        _err.print(f"not compared: {name}: {lacks}", markup=False)
    if out is not None and out.exists():
        _err.print(f"{len(measured.table.rows)} rows in {out} (version {measured.table.version})")
    if len(measured.refused) == len(pairs):
        _fail(KernelsError("not one of the rows could be measured", hint="see the reasons above", code="not_measured"))


@app.command()
def profile(
    hardware: Hardware = "cpu-local",
    out: Annotated[Path | None, typer.Option(help="write the profile as JSON to this file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the profile as JSON")] = False,
) -> None:
    """Show what a device with its runtime can run, with which kernels and session options."""
    try:
        found = load_profile(hardware)
        text = json.dumps(found.to_json(), indent=1)
        if out is not None:
            _write(out, text)
    except KernelsError as error:
        _fail(error)
    if as_json:
        sys.stdout.write(text + "\n")
    elif out is None:
        _show_profile(found)


def read_shapes(words: list[str]) -> list[OpShape]:
    """Op shapes from signatures and files of them, in order and without repeats; `KernelsError` when one is neither."""
    signatures: list[str] = []
    for word in words:
        path = Path(word)
        if path.is_file():
            signatures += _signatures_in(path)
        elif path.suffix or os.sep in word:
            raise KernelsError(f"no file {word}", hint="give a file of op shapes, or an op shape", code="bad_op_shape")
        else:
            signatures.append(word)
    if not signatures:
        raise KernelsError(
            "no op shapes to measure", hint="give --shapes linear_m1_k768_n3072_b1 or a file of shapes",
            code="bad_op_shape",
        )  # fmt: skip
    return [parse_op_shape(signature) for signature in dict.fromkeys(signatures)]


def choose_pairs(profile: HardwareProfile, ops: list[OpShape], names: list[str]) -> list[Pair]:
    """Every op with every precision asked for, or with all that the profile runs for its kind, fp8 included."""
    if names:
        return [(op, precision) for op in ops for precision in map(Precision, names)]
    found = {kind: [FP32, *profile.precisions(kind), *profile.narrow_floats(kind)] for kind in {op.kind for op in ops}}
    return [(op, p) for op in ops for p in found[op.kind] if profile.why_not(op, p) is None]


def _signatures_in(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _MAX_SHAPE_FILE_BYTES:
            raise KernelsError(
                f"{path} is larger than {_MAX_SHAPE_FILE_BYTES} bytes", hint="one op shape a line", code="bad_op_shape"
            )
        text = path.read_text()
        if path.suffix == ".json":
            found = json.loads(text)
            if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
                raise ValueError("not a list of strings")
            return found
    except (OSError, ValueError) as error:
        raise KernelsError(
            f"{path} is not a file of op shapes: {error}", hint="one op shape a line, or a JSON list of them",
            code="bad_op_shape",
        ) from error  # fmt: skip
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _backend(profile: HardwareProfile, command: str) -> Backend:
    if not command:
        return backend_for(profile)
    from kernels.backends.command import Command

    return Command(profile, command)


def _read_table(path: Path | None, profile: HardwareProfile) -> LatencyTable:
    if path is None or not path.exists():
        return empty_table(profile)
    try:
        return LatencyTable.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BadTable(f"cannot read {path}: {error}", hint="choose another --out") from error


def _measure(
    backend: Backend, profile: HardwareProfile, pairs: list[Pair], threads: int, table: LatencyTable, out: Path | None
) -> Measured:
    def save(grown: LatencyTable) -> None:
        if out is not None:
            _write(out, json.dumps(grown.to_json(), indent=1))

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    # No refresh thread: it would run on the very cores that are being timed.
    with Progress(*columns, console=_err, auto_refresh=False) as bar:
        task = bar.add_task("measuring", total=len(pairs))

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            bar.refresh()

        return measure_missing(backend, profile, pairs, threads, table, advance, checkpoint=save)


def _write(path: Path, text: str) -> None:
    """Replace a file in one step, so that a reader or a crash never sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text + "\n")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise KernelsError(f"cannot write {path}: {error}", hint="choose another --out", code="not_writable") from error


def _show(measured: Measured, pairs: list[Pair], threads: int) -> None:
    shown = Table(Column("op shape", overflow="fold"), "precision", "median µs", "± %", "n", "× fp32", "kernel")
    for op, precision in pairs:
        if not measured.table.has(op, precision, threads):
            continue
        row = measured.table.lookup(op, precision, threads)
        half = 50 * (row.ci_high_us - row.ci_low_us) / row.median_us
        gain = "-"
        if measured.table.has(op, FP32, threads):
            gain = f"{measured.table.lookup(op, FP32, threads).median_us / row.median_us:.2f}"
        figures = (f"{row.median_us:.4g}", f"{half:.1f}", str(row.samples), gain)
        shown.add_row(op.signature, precision.name, *figures, row.executed_kernel)
    _out.print(shown)
    for entry in measured.refused:
        hint = f"\nhint: {entry.hint}" if entry.hint else ""
        _err.print(f"no row: {entry.signature} {entry.precision}: {entry.reason} [{entry.code}]{hint}", markup=False)


def _show_profile(found: HardwareProfile) -> None:
    device = found.device
    _out.print(f"{found.slug}: {device.name}, {device.cores} cores, {found.runtime} {found.runtime_version}")
    _out.print(f"instruction sets: {', '.join(device.isa) or 'none that matter'}")
    shown = Table("op", "precision", "kernel", "via", "recipe")
    for (kind, name), support in found.support.items():
        recipe = found.recipes.get((kind, name))
        shown.add_row(kind, name, support.kernel, support.via, recipe.name if recipe else "-")
    _out.print(shown)
    for key, value in found.session_options.items():
        _out.print(f"session option {key} = {value}", markup=False)


def _fail(error: KernelsError) -> NoReturn:
    hint = f"\nhint: {error.hint}" if error.hint else ""
    _err.print(f"error: {error.message} [{error.code}]{hint}", markup=False, soft_wrap=True)
    raise typer.Exit(USER_ERROR)


if __name__ == "__main__":
    app()
