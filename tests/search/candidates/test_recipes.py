"""Recipes of a study: what each profile runs, the union without repeats, and what a profile may not ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_models import small_cnn

from kernels.hardware_profile import HardwareProfile
from kernels.recipes import activation_symmetric, linear_recipe
from kernels.registry import load_profile
from search.candidates.recipes import recipes_for, wanted_of
from search.errors import BadSubmission

GRAPH = small_cnn()


def test_runtimes_that_compute_alike_want_the_same_candidates() -> None:
    fake, t4, h200 = (recipes_for(GRAPH, load_profile(name)) for name in ("fake", "t4", "h200"))
    assert t4 == h200
    assert wanted_of([fake, t4, h200, fake]) == wanted_of([fake, t4])
    shared = fake.keys() & t4.keys()
    assert shared, "both run w8a8"
    assert all(fake[key] != t4[key] for key in shared), "each with its own numerics"
    assert len(wanted_of([fake, t4])) == len(fake) + len(t4)


def test_order_is_the_graphs_whatever_was_asked_for() -> None:
    order = [layer.name for layer in GRAPH.layers]
    names = [name for name, _ in recipes_for(GRAPH, load_profile("t4"), ["w4a8", "w8a8"])]
    assert names == sorted(names, key=order.index)


def mixed_formats() -> HardwareProfile:
    """A runtime whose matrix products read in two formats of one width what may be one tensor."""
    fake = load_profile("fake")
    signed = replace(linear_recipe(4), activation=activation_symmetric(8))
    return replace(fake, slug="odd", recipes={**fake.recipes, ("linear", "w4a8"): signed})


@pytest.mark.parametrize(
    ("profile", "precisions", "code"),
    [
        (load_profile("t4"), ("w8a8", "w4a4"), "activation_bits_mixed"),
        (load_profile("t4"), ("w2a8",), "nothing_to_quantize"),
        (mixed_formats(), (), "activation_numerics_conflict"),
    ],
    ids=["two widths", "nothing", "two formats"],
)
def test_what_no_runtime_can_do_is_refused(profile: HardwareProfile, precisions: tuple[str, ...], code: str) -> None:
    with pytest.raises(BadSubmission) as refused:
        recipes_for(GRAPH, profile, precisions)
    assert refused.value.code == code
    assert refused.value.hint
