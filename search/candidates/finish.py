"""Finished candidates: per layer and precision the best clipping at the layer's output, corrected in closed form.

For every clipping rule the layer is run alone on its exact input, quantized the way the precision's kernel reads it,
and the streamed output moments give the affine refit y ≈ a_c * o + e_c per output channel. The rule whose refitted
output is closest wins. Inputs are exact, so no candidate depends on another layer's choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.errors import UnsupportedPrecision
from kernels.precision import Precision
from kernels.recipe import Granularity, Numerics, Recipe
from search.artifact import qdq
from search.assembly import ActivationQuantizer, Candidate, QuantizedWeight
from search.candidates.affine_fit import PairMoments, Target
from search.candidates.calibration import Calibration, calibrate
from search.candidates.candidate_set import CandidateSet
from search.candidates.correction import correct
from search.candidates.recipes import Recipes, Wanted, wanted_of
from search.errors import BadSubmission
from search.graph import Graph, Layer, LayerKind, Unquantized
from search.onnx_import import layer_bias, layer_weight
from search.quantizer.clipping import weight_parameters
from search.quantizer.fake_quantize import Transform, activation_transform
from search.quantizer.storage import INT32_BIAS_LIMIT, has_int32_bias, layer_bytes
from search.quantizer.uniform import quantize_rows, weight_rows
from search.simulation.layer_output import LayerFunction, output_channel_axis
from search.simulation.simulator import Arrays, Simulator, count_samples

Progress = Callable[[int, int], None]

RULES = ("min-max", "mse", "percentile-99.9")
# At 8 bits a percentile cuts what 256 levels can afford to keep: it won 3 of 49 layers of two models, for no
# visible change of their loss.
_RULES_FROM_8_BITS = frozenset({"min-max", "mse"})
# A layer stops observing once it has seen both: a convolution on large maps has its moments long before the last
# sample, and neighbouring positions say nearly the same.
ENOUGH_SAMPLES = 128
ENOUGH_ROWS = 1 << 17
# Scales are floored so that the bias starts with this much room below the int32 limit, for the refit to use.
_BIAS_ROOM = 2.0


def finish_candidates(
    simulator: Simulator,
    recipes: Recipes,
    chunks: Sequence[Arrays],
    progress: Progress | None = None,
    *,
    rules: Sequence[str] = RULES,
    calibration: Calibration | None = None,
) -> CandidateSet:
    """The candidates of one runtime; pairs that cannot be made are listed in `excluded` with their reason.

    Raises what `finish_wanted` raises.
    """
    makeable, excluded = split_recipes(simulator.graph, recipes)
    finished, calibration = finish_wanted(
        simulator, wanted_of([makeable]), chunks, progress, rules=rules, calibration=calibration
    )
    return CandidateSet(
        candidates={(each.layer, each.precision): candidate for each, candidate in finished.items()},
        quantizers=calibration.quantizers,
        excluded=excluded,
        samples=calibration.samples,
    )


def finish_wanted(
    simulator: Simulator,
    wanted: Sequence[Wanted],
    chunks: Sequence[Arrays],
    progress: Progress | None = None,
    *,
    rules: Sequence[str] = RULES,
    calibration: Calibration | None = None,
) -> tuple[dict[Wanted, Candidate], Calibration]:
    """Candidates of any number of runtimes at once, all makeable, finished on the calibration chunks.

    Three forward passes in full precision (two of them calibrate; pass `calibration` to reuse one) and, per layer
    and chunk, one local run for each candidate and rule. Memory holds one chunk's layer inputs and per-channel
    sums. `progress(done, total)` counts passes over chunks. Raises what `calibrate` raises, and `BadSubmission`
    (`weight_not_finite`) naming a layer with NaN or infinite weights.
    """
    graph = simulator.graph
    total = 3 * len(chunks) if calibration is None else len(chunks)
    done = total - len(chunks)
    if calibration is None:
        calibration = calibrate(
            simulator, chunks, wanted, progress=None if progress is None else lambda at, _: progress(at, total)
        )
    by_layer: dict[str, list[Wanted]] = {}
    for each in wanted:
        by_layer.setdefault(each.layer, []).append(each)
    works = [_LayerWork(graph, graph.layer(name), own, calibration, rules) for name, own in by_layer.items()]
    inputs = sorted({work.layer.input for work in works if work.needs_data})
    for chunk in chunks:
        kept = simulator.run(chunk, keep=inputs) if inputs else {}
        for work in works:
            if work.needs_data:
                name = work.layer.input
                values = np.ascontiguousarray(kept[name] if name in kept else chunk[name])
                work.observe(torch.from_numpy(values), samples=count_samples(chunk))
        done += 1
        if progress is not None:
            progress(done, total)
    finished = {each: candidate for work in works for each, candidate in work.finish().items()}
    return {each: finished[each] for each in wanted}, calibration


def split_recipes(graph: Graph, recipes: Recipes) -> tuple[dict[tuple[str, str], Recipe], tuple[Unquantized, ...]]:
    """The (layer, precision) pairs that can be made, and the others with their reasons."""
    makeable: dict[tuple[str, str], Recipe] = {}
    excluded: list[Unquantized] = []
    for (name, precision), recipe in recipes.items():
        layer = graph.layer(name)
        reason = why_not(layer, recipe) or qdq.why_not(graph, layer, Precision(precision), recipe)
        if reason is None:
            makeable[name, precision] = recipe
        else:
            excluded.append(Unquantized(name, graph.nodes[layer.node].op_type, f"{precision}: {reason}"))
    return makeable, tuple(excluded)


def why_not(layer: Layer, recipe: Recipe) -> str | None:
    """Why the layer cannot be quantized by the recipe, or None when it can."""
    if layer.unquantized_reason is not None:
        return layer.unquantized_reason
    numerics = recipe.weight
    if layer.kind is LayerKind.EMBEDDING and (recipe.activation or recipe.internal_activation):
        return "an embedding reads indices, which cannot be quantized"
    if numerics.granularity is Granularity.GROUP:
        if len(layer.weight_shape) != 2:
            return f"groups need a weight matrix, this weight has shape {layer.weight_shape}"
        width = layer.weight_shape[1 - layer.channel_axis]
        if not numerics.group_size or width % numerics.group_size:
            return f"groups of {numerics.group_size} do not divide the {width} inputs of a channel"
    try:
        weight_rows(np.zeros((2,) * len(layer.weight_shape), dtype=np.float32), numerics, layer.channel_axis)
        some = None if recipe.activation is None else ActivationQuantizer(layer.input, 1.0, 0, recipe.activation)
        activation_transform(recipe, some)
    except UnsupportedPrecision as error:
        return error.message
    return None


_Formats = tuple[Numerics | None, Numerics | None, int | None]


def _formats(recipe: Recipe) -> _Formats:
    """What decides how a layer's input is read: recipes that agree on it share the quantized input."""
    return recipe.activation, recipe.internal_activation, recipe.weight.group_size


@dataclass
class _Trial:
    """One clipping rule's weight and what is known of its output so far."""

    rule: str
    weight: QuantizedWeight
    moments: PairMoments = field(default_factory=PairMoments)


class _LayerWork:
    """All trials of one layer: observes its inputs chunk by chunk, then picks and corrects the best."""

    def __init__(
        self,
        graph: Graph,
        layer: Layer,
        wanted: Sequence[Wanted],
        calibration: Calibration,
        rules: Sequence[str],
    ) -> None:
        self.layer = layer
        self._wanted = wanted
        self.needs_data = layer.kind is not LayerKind.EMBEDDING
        self._weight = layer_weight(graph, layer)
        self._bias = layer_bias(graph, layer)
        for part in (self._weight, self._bias):
            if part is not None and not np.isfinite(part).all():
                raise BadSubmission(
                    f"layer {layer.name!r} has weights that are NaN or infinite",
                    hint="export the model again from a checkpoint that is sound",
                    code="weight_not_finite",
                )
        self._function = LayerFunction(graph, layer)
        self._axis = output_channel_axis(graph, layer)
        self._input_scales: dict[Wanted, float | None] = {}
        self._transforms: dict[_Formats, Transform | None] = {}
        self._trials: dict[Wanted, list[_Trial]] = {}
        self._samples = self._rows = 0
        for each in wanted:
            recipe, quantizer = each.recipe, None
            if recipe.activation is not None and not recipe.activation.dynamic:
                quantizer = calibration.quantizers[layer.input, recipe.activation]
            self._transforms[_formats(recipe)] = activation_transform(recipe, quantizer)
            is_int32 = quantizer is not None and has_int32_bias(graph, layer, recipe)
            self._input_scales[each] = quantizer.scale if quantizer is not None and is_int32 else None
            self._trials[each] = self._make_trials(each, rules)

    def _make_trials(self, each: Wanted, rules: Sequence[str]) -> list[_Trial]:
        rows = weight_rows(self._weight, each.recipe.weight, self.layer.channel_axis)
        floor = self._scale_floor(each, len(rows.values))
        trials: list[_Trial] = []
        if rows.numerics.bits >= 8:
            rules = [rule for rule in rules if rule in _RULES_FROM_8_BITS] or rules
        for rule in rules:
            scale, zero_point = weight_parameters(rows, rule)
            weight = quantize_rows(rows, np.maximum(scale, floor), zero_point)
            if not any(
                np.array_equal(weight.codes, other.weight.codes) and np.array_equal(weight.scale, other.weight.scale)
                for other in trials
            ):
                trials.append(_Trial(rule, weight))
        return trials

    def _scale_floor(self, each: Wanted, rows: int) -> np.ndarray[Any, Any]:
        """The smallest scale per row at which the int32 bias still fits with room."""
        input_scale = self._input_scales[each]
        if input_scale is None or self._bias is None:
            return np.zeros(rows)
        floor = np.abs(self._bias).astype(np.float64) * _BIAS_ROOM / (input_scale * INT32_BIAS_LIMIT)
        return floor if rows == len(floor) else np.full(rows, floor.max())

    def observe(self, values: Tensor, samples: int) -> None:
        """One chunk of the layer's exact input; ignored once the layer has seen enough."""
        if self._samples >= ENOUGH_SAMPLES and self._rows >= ENOUGH_ROWS:
            return
        with torch.no_grad():
            target = Target(self._function(values, self._function.exact_weight), self._axis)
            self._samples += samples
            self._rows += target.count
            for formats, transform in self._transforms.items():
                read = values if transform is None else transform(values)
                for each in (each for each in self._wanted if _formats(each.recipe) == formats):
                    for trial in self._trials[each]:
                        weight = torch.from_numpy(trial.weight.dequantize())
                        trial.moments.add_to(target, self._function(read, weight))

    def finish(self) -> dict[Wanted, Candidate]:
        return {each: self._finish(each) for each in self._wanted}

    def _finish(self, each: Wanted) -> Candidate:
        if not self.needs_data:
            return self._finish_table(each)
        best: tuple[_Trial, Any] | None = None
        for trial in self._trials[each]:
            corrected = correct(trial.weight, self._bias, trial.moments, self._input_scales[each])
            if best is None or corrected.residual < best[1].residual:
                best = (trial, corrected)
        assert best is not None
        trial, corrected = best
        return self._candidate(each, trial.rule, corrected.weight, corrected.bias, corrected.residual)

    def _finish_table(self, each: Wanted) -> Candidate:
        """A table's rows reach the output as they are: the least weight error wins, nothing is refitted."""
        power = float(np.square(self._weight, dtype=np.float64).sum())
        errors = [
            float(np.square(trial.weight.dequantize() - self._weight, dtype=np.float64).sum())
            for trial in self._trials[each]
        ]
        best = int(np.argmin(errors))
        trial = self._trials[each][best]
        return self._candidate(each, trial.rule, trial.weight, None, errors[best] / power if power > 0 else 0.0)

    def _candidate(
        self,
        each: Wanted,
        rule: str,
        weight: QuantizedWeight,
        bias: np.ndarray[Any, np.dtype[np.float32]] | None,
        residual: float,
    ) -> Candidate:
        return Candidate(
            layer=self.layer.name,
            precision=Precision(each.precision),
            recipe=each.recipe,
            weight=weight,
            bias=bias,
            clipping=rule,
            residual=residual,
            size_bytes=layer_bytes(weight, bias),
        )
