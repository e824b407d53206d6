"""Recipes to scan: the union of what the study's profiles run, per layer and precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kernels.hardware_profile import HardwareProfile
from kernels.recipe import Recipe
from search.errors import BadSubmission
from search.graph import Graph


def recipes_for(
    graph: Graph, profiles: Iterable[HardwareProfile], precisions: Sequence[str] = ()
) -> dict[tuple[str, str], Recipe]:
    """(layer, precision name) → recipe for every pair some profile runs, in graph order.

    `precisions`, when given, are the only ones kept. Raises `BadSubmission`: `recipe_conflict` when two profiles
    compute one precision with different numerics, `nothing_to_quantize` when no pair is left.
    """
    found: dict[tuple[str, str], Recipe] = {}
    for profile in profiles:
        for layer in graph.layers:
            if layer.unquantized_reason is not None:
                continue
            for precision in profile.precisions(layer.op_kind):
                if precisions and precision.name not in precisions:
                    continue
                recipe = profile.recipe(layer.op_kind, precision)
                if found.setdefault((layer.name, precision.name), recipe) != recipe:
                    raise BadSubmission(
                        f"{profile.slug!r} runs {precision} {layer.op_kind} with other numerics than another target",
                        hint="submit one study per target; each is scanned with its own numerics",
                        code="recipe_conflict",
                    )
    if not found:
        raise BadSubmission(
            "no layer of the model can be quantized on the profiles asked for",
            hint="see the reasons beside each layer, and the precisions of each profile",
            code="nothing_to_quantize",
        )
    order = {layer.name: index for index, layer in enumerate(graph.layers)}
    return dict(sorted(found.items(), key=lambda item: order[item[0][0]]))
