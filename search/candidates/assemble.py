"""Assemble: precisions per layer made concrete with finished candidates and shared activation quantizers."""

from __future__ import annotations

from collections.abc import Mapping

from kernels.precision import FP32
from search.assembly import ActivationQuantizer, Assembly, Candidate
from search.candidates.candidate_set import CandidateSet
from search.candidates.recipes import static_formats
from search.errors import BadSubmission
from search.graph import Graph


def assemble(graph: Graph, precisions: Mapping[str, str], candidates: CandidateSet) -> Assembly:
    """The assembly that gives each layer its precision; layers that are absent or `fp32` stay in full precision.

    Every static reader's input tensor gets its quantizer, and so does the output (behind an absorbed activation) of
    a layer whose recipe quantizes it; that tensor joins `output_quantized`. Raises `BadSubmission` for an unknown
    layer (`layer_unknown`), a pair without a candidate (`candidate_missing`) and a tensor that its users would need
    in two formats at once (`activation_bits_conflict`).
    """
    known = {layer.name for layer in graph.layers}
    chosen: dict[str, Candidate] = {}
    quantizers: dict[str, ActivationQuantizer] = {}
    outputs: set[str] = set()
    for name, precision in precisions.items():
        if name not in known:
            raise BadSubmission(
                f"the model has no layer {name!r}", hint="use the names of Graph.layers", code="layer_unknown"
            )
        if precision == FP32.name:
            continue
        if (name, precision) not in candidates.candidates:
            offered = ", ".join(candidates.precisions(name)) or "full precision only"
            raise BadSubmission(
                f"layer {name!r} has no candidate {precision!r}", hint=f"it has {offered}", code="candidate_missing"
            )
        candidate = chosen[name] = candidates.candidates[name, precision]
        formats = static_formats(graph, name, candidate.recipe)
        for tensor, numerics in formats.items():
            quantizer = candidates.quantizers[tensor, numerics]
            if quantizers.setdefault(tensor, quantizer) != quantizer:
                raise BadSubmission(
                    f"layer {name!r} at {precision} needs tensor {tensor!r} in {numerics.bits} bits, another user in "
                    f"{quantizers[tensor].numerics.bits}",
                    hint="give the layers around this tensor the same activation bits",
                    code="activation_bits_conflict",
                )
        if formats and candidate.recipe.output_quantized:
            outputs.add(graph.layer(name).quantized_tensor)
    return Assembly(chosen, quantizers, frozenset(outputs))
