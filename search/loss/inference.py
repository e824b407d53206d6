"""Losses of a model: what each output means, read from the ops that make it, or a refusal that says how to declare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from search.errors import BadSubmission
from search.graph import Graph, Node
from search.loss.labels import answered_axis
from search.loss.model_loss import Array, LossKind, ModelLoss, OutputLoss
from search.simulation.simulator import Arrays

__all__ = ["LossKind", "ModelLoss", "OutputLoss", "infer_losses"]

_PASS_THROUGH = {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout"}
_LINEAR = {"Gemm", "MatMul", "Conv", "ConvTranspose"}
_SHAPELESS_ADD = {"Add", "Sub"}
_NOT_LOGITS = ("hidden", "embed", "feature", "pool", "box", "coord", "keypoint", "landmark", "depth", "value", "state")
_PIXEL_LOGITS = ("logit", "seg", "class")
_MASK_NAMES = ("attention_mask", "mask", "input_mask")
_DECLARABLE = {"kind", "class_axis", "mask", "probabilities"}
HINT = (
    'declare it, for example {"kind": "softmax_kl", "class_axis": -1} for class logits, "sigmoid_kl" for independent '
    'labels, "mse" for regression, "cosine" for embeddings, "ignore" to leave it out; "mask" names an input that '
    'marks real tokens (on the command line: --loss "output=softmax_kl:1")'
)
_SUM_TOLERANCE = 1e-3


def infer_losses(
    graph: Graph,
    reference_outputs: Arrays,
    declared: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    samples: int | None = None,
    labels: Array | None = None,
) -> ModelLoss:
    """The loss of a model from its graph, some full-precision outputs, and what the user declared per output.

    Where neither says what an output is, `labels` (of any number of samples) may: whole numbers below the size of its
    class axis, one per sample, token or pixel.

    With `samples`, how many the outputs are of, an output that has not one entry for each of them is told; it has no
    loss per sample. Outputs that no quantizable layer feeds never change; unless declared, neither kind is scored.
    Raises `BadSubmission`: `output_kind_unclear` for outputs that nothing speaks for, `loss_declaration_invalid` for
    a declaration that does not fit.
    """
    declared = dict(declared or {})
    shapes = {info.name: info.shape for info in graph.outputs}
    known = list(shapes)
    if unknown := sorted(set(declared) - set(known)):
        raise _invalid(f"the model has no outputs {unknown}", f"its outputs are {known}")
    losses: list[OutputLoss] = []
    notes: list[str] = []
    unclear: list[str] = []
    changing = _fed_by_layers(graph)
    for name in known:
        values = np.asarray(reference_outputs[name])
        compares_samples = any(isinstance(size, str) and size in shapes[name][1:] for size in shapes[name][:1])
        is_shared = values.ndim == 0 or samples not in (None, len(values)) or compares_samples
        if is_shared and declared.get(name, {}).get("kind", "ignore") != "ignore":
            raise _invalid(
                f"output {name!r} of shape {values.shape} has not one entry per sample ({samples} were run)",
                'declare "ignore", or export it with samples along the first axis',
            )
        if name not in declared and (is_shared or name not in changing):
            why = "it has not one entry per sample" if is_shared else "no layer that can be quantized feeds it"
            notes.append(f"Output {name!r} is not scored: {why}.")
            continue
        loss = (
            _declared(graph, name, values, declared[name])
            if name in declared
            else _inferred(graph, name, values) or _answered(name, values, labels)
        )
        if loss is None:
            unclear.append(f"{name!r} {values.dtype}{('n', *values.shape[1:])}".replace("'n'", "n"))
        elif loss.kind is LossKind.IGNORE:
            notes.append(f"Output {name!r} is not scored" + ("." if name in declared else ": it holds integers."))
        else:
            losses.append(loss)
            if name not in declared:
                notes.append(f"Output {name!r} was taken as {_in_words(loss)}.")
    if unclear:
        raise BadSubmission(
            f"what {', '.join(unclear)} means is unclear", hint=f"for each, {HINT}", code="output_kind_unclear"
        )
    _check_finite(losses, reference_outputs)
    if not losses:
        raise BadSubmission("no output is left to score", hint=HINT, code="output_kind_unclear")
    return ModelLoss(tuple(losses), tuple(notes))


def _answered(name: str, values: Array, labels: Array | None) -> OutputLoss | None:
    axis = None if labels is None else answered_axis(values, labels)
    return None if axis is None else OutputLoss(name, LossKind.SOFTMAX_KL, axis)


def _check_finite(losses: Sequence[OutputLoss], outputs: Arrays) -> None:
    broken = [loss.output for loss in losses if not np.isfinite(outputs[loss.output]).all()]
    if broken:
        raise BadSubmission(
            f"the model itself answers NaN or infinity on these samples, at output(s) {', '.join(broken)}",
            hint="check how the samples were preprocessed, and that no sample is padding alone",
            code="outputs_not_finite",
        )


def _fed_by_layers(graph: Graph) -> set[str]:
    """Every tensor that depends on a layer that can be quantized; all where there is no such layer to tell by."""
    starts = {layer.node for layer in graph.layers if layer.unquantized_reason is None}
    found = set[str]() if starts else {info.name for info in graph.outputs}
    for node in graph.nodes:
        if node.index in starts or not found.isdisjoint(node.inputs):
            found.update(node.outputs)
    return found


def _invalid(message: str, hint: str) -> BadSubmission:
    return BadSubmission(message, hint=hint, code="loss_declaration_invalid")


def _in_words(loss: OutputLoss) -> str:
    what = "probabilities" if loss.probabilities else "logits"
    masked = f", positions by {loss.mask!r}" if loss.mask else ""
    return f"{what} along axis {loss.class_axis} ({loss.kind.value}{masked})"


def _declared(graph: Graph, name: str, values: Array, wanted: Mapping[str, Any]) -> OutputLoss:
    if unknown := set(wanted) - _DECLARABLE:
        raise _invalid(f"output {name!r}: {sorted(unknown)} cannot be declared", f"known: {sorted(_DECLARABLE)}")
    try:
        kind = LossKind(wanted.get("kind"))
    except ValueError:
        kinds = ", ".join(kind.value for kind in LossKind)
        raise _invalid(f"output {name!r}: {wanted.get('kind')!r} is not a kind", f"kinds are {kinds}") from None
    axis = wanted.get("class_axis", -1)
    rank = max(values.ndim, 2)  # one number per sample reads as one feature
    if not isinstance(axis, int) or isinstance(axis, bool) or not -rank < axis < rank or axis == 0:
        raise _invalid(
            f"output {name!r}: class_axis {axis!r} does not fit its shape {values.shape}",
            "axis 0 counts samples; name one of the others",
        )
    mask = wanted["mask"] if "mask" in wanted else _mask(graph, values, axis)
    if mask is not None and mask not in {info.name for info in graph.inputs}:
        raise _invalid(f"output {name!r}: mask {mask!r} is no input", f"inputs: {[info.name for info in graph.inputs]}")
    if kind is not LossKind.IGNORE and values.dtype.kind != "f":
        raise _invalid(f"output {name!r} holds {values.dtype}, which has no {kind.value}", 'declare "ignore"')
    _, ends_in = _producer(graph, name)
    closing = {LossKind.SOFTMAX_KL: "Softmax", LossKind.SIGMOID_KL: "Sigmoid"}.get(kind)
    probabilities = wanted.get("probabilities", ends_in is not None and ends_in.op_type == closing)
    if probabilities not in (True, False):
        raise _invalid(f"output {name!r}: probabilities is {probabilities!r}", "write true or false")
    return OutputLoss(name, kind, axis, bool(probabilities), mask, _variance(values))


def _variance(values: Array) -> float:
    if values.dtype.kind != "f":
        return 1.0
    variance = float(values.astype(np.float64).var())
    return variance if variance > 0 else 1.0


def _inferred(graph: Graph, name: str, values: Array) -> OutputLoss | None:
    if values.dtype.kind != "f":
        return OutputLoss(name, LossKind.IGNORE)
    through, node = _producer(graph, name)
    if node is not None and node.op_type in ("Softmax", "LogSoftmax") and "Reshape" not in through:
        axis = int(node.attributes.get("axis", -1 if graph.opset >= 13 else 1))
        if axis % values.ndim:
            return OutputLoss(name, LossKind.SOFTMAX_KL, axis, node.op_type == "Softmax", _mask(graph, values, axis))
    if node is not None and node.op_type == "Sigmoid" and values.ndim in (1, 2):
        return OutputLoss(name, LossKind.SIGMOID_KL, -1, True)
    if values.ndim >= 2 and values.shape[-1] > 1 and _sums_to_one(values):
        return OutputLoss(name, LossKind.SOFTMAX_KL, -1, True, _mask(graph, values, -1))
    lowered = name.lower()
    is_linear = node is not None and node.op_type in _LINEAR
    if any(word in lowered for word in _NOT_LOGITS) or not (is_linear or ("logit" in lowered and values.ndim == 2)):
        return None
    if values.ndim in (2, 3) and values.shape[-1] > 1:
        return OutputLoss(name, LossKind.SOFTMAX_KL, -1, mask=_mask(graph, values, -1))
    if values.ndim == 4 and values.shape[1] > 1 and any(word in lowered for word in _PIXEL_LOGITS):
        return OutputLoss(name, LossKind.SOFTMAX_KL, 1)
    return None


def _producer(graph: Graph, name: str) -> tuple[set[str], Node | None]:
    """The op that gives an output its values, and the ops passed on the way that only move them.

    A constant Add behind a linear op is its bias and belongs to it.
    """
    made_by = {output: node for node in graph.nodes for output in node.outputs}
    passed: set[str] = set()
    node = made_by.get(name)
    while node is not None:
        if node.op_type in _PASS_THROUGH:
            following = node.inputs[0]
        elif node.op_type in _SHAPELESS_ADD and any(each in graph.constants for each in node.inputs):
            following = next((each for each in node.inputs if each not in graph.constants), "")
        else:
            return passed, node
        passed.add(node.op_type)
        node = made_by.get(following)
    return passed, None


def _sums_to_one(values: Array) -> bool:
    wide = values.astype(np.float64)
    return bool((wide >= 0).all() and np.abs(wide.sum(-1) - 1).max(initial=0) < _SUM_TOLERANCE)


def _mask(graph: Graph, values: Array, class_axis: int) -> str | None:
    """A padding mask among the inputs, when the output has one position per mask entry."""
    if values.ndim != 3 or class_axis % values.ndim != 2:
        return None
    by_name = {info.name: info for info in graph.inputs}
    for name in _MASK_NAMES:
        if name in by_name and by_name[name].dtype.kind in "iub" and len(by_name[name].shape) == 2:
            size = by_name[name].shape[1]
            if not isinstance(size, int) or size == values.shape[1]:
                return name
    return None
