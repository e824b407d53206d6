"""Pins: layers that a study fixes to a precision, held against the model and every target before all else."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from kernels.precision import FP32
from search.candidates.recipes import Recipes
from search.errors import BadSubmission
from search.graph import Graph

NAMES_SHOWN = 5


def check_pins(pins: Mapping[str, str], graph: Graph, recipes: Mapping[str, Recipes]) -> None:
    """Refuse pins that cannot be kept; `recipes` are what each target's hardware runs, by its slug.

    Raises `BadSubmission`: `layer_unknown` for a layer the model does not have, `pin_unknown_precision` for a precision
    that a target does not run for the layer.
    """
    known = {layer.name: layer for layer in graph.layers}
    for name, precision in pins.items():
        if name not in known:
            near = get_close_matches(name, known, n=NAMES_SHOWN) or list(known)[:NAMES_SHOWN]
            raise BadSubmission(
                f"a pin names layer {name!r}, which the model does not have",
                hint=f"of its {len(known)} layers the nearest are {', '.join(near)}" if near else "it has no layers",
                code="layer_unknown",
            )
        for hardware, offered in recipes.items():
            if precision == FP32.name or (name, precision) in offered:
                continue
            others = [each for layer, each in offered if layer == name]
            why = known[name].unquantized_reason
            raise BadSubmission(
                f"layer {name!r} is pinned to {precision}, which {hardware} does not run for it"
                + (f": {why}" if why else ""),
                hint=f"there it can take {', '.join([*others, FP32.name])}",
                code="pin_unknown_precision",
            )
