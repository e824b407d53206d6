"""Dataset: arrays named after a model's inputs, checked against its graph, and split so that nothing leaks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from search.data.dataset_file import DEFAULT_LIMITS, Array, FileLimits, read_arrays
from search.errors import BadSubmission
from search.graph import Graph, LayerKind, TensorInfo
from search.simulation.simulator import Arrays

LABELS, GROUPS = "labels", "groups"
MINIMUM_SAMPLES = 16
CALIBRATE_MINIMUM = 128
CALIBRATE_MAXIMUM = 512
FULL_CLAIM_SAMPLES = 3 * CALIBRATE_MINIMUM


@dataclass(frozen=True)
class Dataset:
    """Samples along axis 0 of every array; `inputs` has one array per graph input, in the graph's dtype.

    `labels` serve evaluation only. Samples with equal `groups` (patient, video, document) never part in a split.
    With `fixed_batch` every chunk holds whole batches of that size, because the model accepts nothing else.
    """

    inputs: Mapping[str, Array]
    labels: Array | None = None
    groups: Array | None = None
    fixed_batch: int | None = None
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, indices: Array) -> Dataset:
        """The samples at `indices`, in that order."""
        return Dataset(
            {name: array[indices] for name, array in self.inputs.items()},
            None if self.labels is None else self.labels[indices],
            None if self.groups is None else self.groups[indices],
            self.fixed_batch,
            self.notes,
        )

    def chunks(self, size: int) -> list[Arrays]:
        """Consecutive pieces of at most `size` samples; of whole fixed batches (at least one) where there is one.

        A tail shorter than the fixed batch is left out; `split_dataset` cuts splits so that there is none.
        """
        batch = self.fixed_batch or 1
        step = max(size - size % batch, batch)
        last = len(self) - len(self) % batch
        return [
            {name: array[start : min(start + step, last)] for name, array in self.inputs.items()}
            for start in range(0, last, step)
        ]

    @cached_property
    def content_hash(self) -> str:
        """sha256 over names, dtypes, shapes and bytes: equal data has an equal hash whatever file it came in."""
        digest = hashlib.sha256()
        extras = {LABELS: self.labels, GROUPS: self.groups}
        arrays = {f"input:{name}": array for name, array in self.inputs.items()} | {
            name: array for name, array in extras.items() if array is not None
        }
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Splits:
    """Disjoint parts of one dataset: `calibrate` fits, `select` chooses, `report` is published.

    The index arrays point into the dataset they came from. `notes` say what the amount of data does not allow.
    """

    calibrate: Dataset
    select: Dataset
    report: Dataset
    notes: tuple[str, ...]
    indices: tuple[Array, Array, Array]


def load_dataset(path: Path, graph: Graph, limits: FileLimits = DEFAULT_LIMITS) -> Dataset:
    """The dataset in an `.npz` or `.safetensors` file, checked against the graph's inputs.

    Raises `BadSubmission` with a `dataset_*` code; the hint lists what was expected and what was given.
    """
    return check_dataset(read_arrays(Path(path), limits), graph)


def check_dataset(arrays: Mapping[str, Array], graph: Graph) -> Dataset:
    """A dataset from arrays already in memory, checked like a submitted file."""
    expected = {info.name: info for info in graph.inputs}
    extras = {name for name in (LABELS, GROUPS) if name not in expected and name in arrays}
    given = set(arrays) - extras
    if given != set(expected):
        missing, unknown = sorted(set(expected) - given), sorted(given - set(expected))
        raise BadSubmission(
            f"the dataset lacks {missing} and has {unknown} that the model does not read",
            hint=f"expected {_describe(graph.inputs)}, optional {LABELS!r} and {GROUPS!r}; "
            f"given {_describe_arrays(arrays)}",
            code="dataset_names_mismatch",
        )
    notes: list[str] = []
    dims: dict[str, int] = {}
    inputs: dict[str, Array] = {}
    for name, info in expected.items():
        _check_shape(arrays[name], info, graph, dims)
        inputs[name] = _as_dtype(arrays[name], info, notes)
        _check_rows(name, inputs[name], graph)
    _check_lengths({**inputs, **{name: arrays[name] for name in extras}})
    samples = len(next(iter(inputs.values())))
    if samples < max(MINIMUM_SAMPLES, 3 * (graph.fixed_batch or 1)):
        raise BadSubmission(
            f"the dataset has {samples} samples",
            hint=f"at least {max(MINIMUM_SAMPLES, 3 * (graph.fixed_batch or 1))} are needed to calibrate, select and "
            f"report on disjoint parts; {FULL_CLAIM_SAMPLES} for every claim",
            code="dataset_too_small",
        )
    groups = arrays[GROUPS] if GROUPS in extras else None
    if groups is not None and (groups.ndim != 1 or groups.dtype.kind not in "iuSU"):
        raise BadSubmission(
            f"'groups' is {groups.dtype} of shape {groups.shape}",
            hint="give one integer or string per sample; samples with the same one stay together",
            code="dataset_groups_invalid",
        )
    labels = arrays[LABELS] if LABELS in extras else None
    if labels is not None and labels.dtype.kind == "f":
        _check_finite(LABELS, labels)
    return Dataset(inputs, labels, groups, graph.fixed_batch, tuple(notes))


def _describe(infos: tuple[TensorInfo, ...]) -> str:
    return ", ".join(f"{info.name}: {info.dtype}{_shape_text(info)}" for info in infos)


def _shape_text(info: TensorInfo) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in info.shape) + ")"


def _describe_arrays(arrays: Mapping[str, Array]) -> str:
    return ", ".join(f"{name}: {array.dtype}{array.shape}" for name, array in arrays.items()) or "nothing"


def _check_shape(array: Array, info: TensorInfo, graph: Graph, dims: dict[str, int]) -> None:
    """Axis 0 counts samples; the other axes must equal the graph's, a named dimension one size everywhere."""
    hint = f"expected {info.name}: {_shape_text(info)} with samples along the first axis; given {array.shape}"

    def refuse(why: str) -> BadSubmission:
        return BadSubmission(f"input {info.name!r} {why}", hint=hint, code="dataset_shape_mismatch")

    if not info.shape:
        raise refuse("of the model is a scalar, which has no axis for samples")
    if array.ndim != len(info.shape):
        raise refuse(f"has {array.ndim} axes in the dataset and {len(info.shape)} in the model")
    batch = info.shape[0]
    if isinstance(batch, int) and batch != graph.fixed_batch:
        raise refuse(f"of the model has {batch} entries along its first axis, which are not samples")
    for axis, (size, wanted) in enumerate(zip(array.shape[1:], info.shape[1:], strict=True), start=1):
        if isinstance(wanted, str):
            wanted = dims.setdefault(wanted, size)
        if size == 0 or (wanted is not None and size != wanted):
            raise refuse(f"has size {size} along axis {axis}, not {wanted}")


def _as_dtype(array: Array, info: TensorInfo, notes: list[str]) -> Array:
    """The array in the graph's dtype. Floats convert to floats, integers to integers that hold them; nothing else."""
    source, target = array.dtype, np.dtype(info.dtype)
    integers = source.kind in "iu" and target.kind in "iu"
    if not (source.kind == target.kind or integers) or source.kind not in "fiub":
        raise BadSubmission(
            f"input {info.name!r} is {source} in the dataset and {target} in the model",
            hint="preprocess as the model expects (scale images to float yourself) and save that dtype",
            code="dataset_dtype_mismatch",
        )
    _check_finite(info.name, array)
    if source == target:
        return array
    if integers and array.size:
        limits = np.iinfo(target)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise BadSubmission(
                f"input {info.name!r} holds {array.min()}…{array.max()}, which {target} cannot",
                hint=f"expected values in {limits.min}…{limits.max}",
                code="dataset_dtype_mismatch",
            )
    with np.errstate(over="ignore"):
        converted = array.astype(target)
    _check_finite(info.name, converted)
    if source.newbyteorder("=") != target:
        notes.append(f"Input {info.name!r} was converted from {source} to {target}.")
    return converted


def _check_rows(name: str, array: Array, graph: Graph) -> None:
    """Ids that an embedding looks up must be rows of it; ONNX counts negative ones from its end."""
    rows = [
        layer.weight_shape[0] for layer in graph.layers if layer.kind is LayerKind.EMBEDDING and layer.input == name
    ]
    if not rows or not array.size or -min(rows) <= array.min() <= array.max() < min(rows):
        return
    raise BadSubmission(
        f"input {name!r} holds {array.min()}…{array.max()}, and the embedding it looks up has {min(rows)} rows",
        hint=f"give ids in 0…{min(rows) - 1}; the tokenizer may be another model's",
        code="dataset_ids_out_of_range",
    )


def _check_finite(name: str, array: Array) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
        raise BadSubmission(
            f"{name!r} has NaN or infinite values in {int(bad.sum())} samples, first in sample {int(bad.argmax())}",
            hint="remove or repair those samples",
            code="dataset_nonfinite",
        )


def _check_lengths(arrays: Mapping[str, Array]) -> None:
    lengths = {name: len(array) if array.ndim else None for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or None in lengths.values():
        raise BadSubmission(
            f"the arrays have different numbers of samples: {lengths}",
            hint="every array needs one entry per sample along its first axis",
            code="dataset_length_mismatch",
        )


def split_dataset(dataset: Dataset, seed: int) -> Splits:
    """Calibrate, select and report parts, disjoint, seeded, and never with one group in two parts.

    Calibrate gets a third, at least 128 and at most 512 samples where there are that many; select and report
    share the rest. Raises `BadSubmission` (`dataset_too_few_groups`) when there are fewer than three groups.
    """
    generator = np.random.default_rng(seed)
    total = len(dataset)
    targets = _targets(total)
    notes: list[str] = list(dataset.notes)
    if dataset.groups is None:
        order = generator.permutation(total)
        cuts = np.cumsum(targets)[:2]
        parts = [np.sort(part) for part in np.split(order, cuts)]
    else:
        parts = _split_groups(dataset.groups, targets, generator)
    if dataset.fixed_batch:
        parts = [_whole_batches(part, dataset.fixed_batch) for part in parts]
        left_out = total - sum(map(len, parts))
        if left_out:
            notes.append(f"{left_out} samples were left out: the model takes exactly {dataset.fixed_batch} at a time.")
    notes += _claims(total, [len(part) for part in parts])
    calibrate, select, report = (dataset.take(part) for part in parts)
    return Splits(calibrate, select, report, tuple(notes), (parts[0], parts[1], parts[2]))


def _targets(total: int) -> tuple[int, int, int]:
    if total >= FULL_CLAIM_SAMPLES:
        calibrate = min(total // 3, CALIBRATE_MAXIMUM)
    else:
        calibrate = min(CALIBRATE_MINIMUM, max(total // 2, total - CALIBRATE_MINIMUM // 2))
    select = (total - calibrate) // 2
    return calibrate, select, total - calibrate - select


def _split_groups(groups: Array, targets: tuple[int, int, int], generator: np.random.Generator) -> list[Array]:
    """Groups dealt in random order to the part that lacks most of its target; huge ones first, where they fit."""
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) < len(targets):
        raise BadSubmission(
            f"the dataset has {len(sizes)} groups",
            hint="at least 3 are needed, as calibrate, select and report must not share a group",
            code="dataset_too_few_groups",
        )
    order = generator.permutation(len(sizes))
    huge = sizes[order] >= min(targets)
    order = np.concatenate([order[huge][np.argsort(-sizes[order[huge]], kind="stable")], order[~huge]])
    filled = np.zeros(len(targets), dtype=np.int64)
    part_of = np.zeros(len(sizes), dtype=np.int64)
    wanted = np.asarray(targets)
    for group in order:
        lack = wanted - filled
        part = int(lack.argmax() if sizes[group] >= wanted.min() else (lack / wanted).argmax())
        part_of[group] = part
        filled[part] += sizes[group]
    for part in range(len(targets)):
        if not filled[part]:
            crowded = np.flatnonzero(np.bincount(part_of, minlength=len(targets))[part_of] > 1)
            smallest = crowded[sizes[crowded].argmin()]
            filled[part_of[smallest]] -= sizes[smallest]
            filled[part] += sizes[smallest]
            part_of[smallest] = part
    return [np.flatnonzero(part_of[member.reshape(-1)] == part) for part in range(len(targets))]


def _whole_batches(part: Array, batch: int) -> Array:
    whole = len(part) - len(part) % batch
    if not whole:
        raise BadSubmission(
            f"a part of {len(part)} samples is smaller than the model's fixed batch of {batch}",
            hint="bring more samples, or export the model with a dynamic batch dimension",
            code="dataset_too_small",
        )
    return part[:whole]


def _claims(total: int, sizes: list[int]) -> list[str]:
    """Sentences on what this many samples cannot support."""
    notes = []
    if total < FULL_CLAIM_SAMPLES:
        notes.append(
            f"{total} samples are fewer than {FULL_CLAIM_SAMPLES}: the confidence intervals are wide, small "
            "differences between allocations are not claimed."
        )
    if sizes[0] < CALIBRATE_MINIMUM:
        notes.append(
            f"{sizes[0]} calibration samples are fewer than {CALIBRATE_MINIMUM}: interactions between layers are not "
            "used."
        )
    for name, size in zip(("select", "report"), sizes[1:], strict=True):
        if size < CALIBRATE_MINIMUM:
            notes.append(f"The {name} part has only {size} samples.")
    return notes
