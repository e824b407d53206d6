"""Precisions parse from and print as their names, and refuse what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.errors import UnsupportedPrecision
from kernels.precision import FP32, Precision


@pytest.mark.parametrize(
    ("name", "weights", "activations", "group", "dynamic", "weight_only"),
    [
        ("w8a8", 8, 8, None, False, False),
        ("w8a8-dynamic", 8, 8, None, True, False),
        ("w4a16-g32", 4, 16, 32, False, True),
        ("w8a16", 8, 16, None, False, True),
        ("w3a5-g128-dynamic", 3, 5, 128, True, False),
        ("fp32", 32, 32, None, False, False),
        ("fp8", 8, 8, None, False, False),
    ],
)
def test_fields(name: str, weights: int, activations: int, group: int | None, dynamic: bool, weight_only: bool) -> None:
    precision = Precision(name)
    assert (precision.weight_bits, precision.activation_bits) == (weights, activations)
    assert (precision.group_size, precision.is_dynamic) == (group, dynamic)
    assert precision.is_weight_only is weight_only
    assert precision.is_float is name.startswith("fp")
    assert precision.bops_per_mac == weights * activations


@given(
    st.integers(1, 16), st.integers(1, 16), st.one_of(st.none(), st.integers(1, 512)), st.booleans()
)  # fmt: skip
def test_every_legal_name_round_trips(weights: int, activations: int, group: int | None, dynamic: bool) -> None:
    name = f"w{weights}a{activations}{f'-g{group}' if group else ''}{'-dynamic' * dynamic}"
    precision = Precision(name)
    assert str(precision) == name
    assert Precision(str(precision)) == precision
    assert (precision.weight_bits, precision.activation_bits, precision.group_size) == (weights, activations, group)


@pytest.mark.parametrize(
    "name", ["", "int8", "w8", "a8", "w0a8", "w17a8", "w8a17", "w4a16-g0", "w8a8-static", "FP32", " w8a8"]
)
def test_anything_else_is_refused_with_a_hint(name: str) -> None:
    with pytest.raises(UnsupportedPrecision) as caught:
        Precision(name)
    assert caught.value.hint


def test_quantizing_activations_is_a_fact_of_its_own() -> None:
    assert Precision("w4a8").quantizes_activations
    assert not Precision("w4a16-g32").quantizes_activations
    assert not FP32.quantizes_activations
