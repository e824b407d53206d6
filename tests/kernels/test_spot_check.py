"""Spot checks agree with the whole reference wherever they look, and they look at the corners."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import recipes
from kernels.op_shape import Conv2dShape, LinearShape, parse_op_shape
from kernels.precision import FP32, Precision
from kernels.random_layer import random_layer
from kernels.recipe import Recipe
from kernels.reference import expected_output
from kernels.spot_check import sample

LINEAR = "linear_m70_k96_n61_b1"
CONVS = (
    "conv2d_n2_c16_h9_w11_o24_k3x3_s2x1_p1x0x2x1_d1x2_g4_b1",
    "conv2d_n1_c32_h8_w8_o32_k3x3_s1x1_p1x1x1x1_d1x1_g32_b0",
    "conv2d_n2_c3_h15_w15_o60_k7x7_s2x2_p3x3x3x3_d1x1_g1_b1",
)
CASES: list[tuple[str, str, Recipe | None]] = [
    (LINEAR, "fp32", None),
    (LINEAR, "w8a8", recipes.linear_recipe(8)),
    (LINEAR, "w4a16-g32", recipes.LINEAR_W4_GROUPS_FLOAT),
    *((conv, "fp32", None) for conv in CONVS),
    *((conv, "w8a8", recipes.conv_recipe(8)) for conv in CONVS),
    *((conv, "w4a8", recipes.conv_symmetric_recipe(4, 8)) for conv in CONVS),
]


@pytest.mark.parametrize(("signature", "precision", "recipe"), CASES)
def test_samples_are_what_the_whole_reference_says(signature: str, precision: str, recipe: Recipe | None) -> None:
    op = parse_op_shape(signature)
    layer = random_layer(op, Precision(precision), recipe)
    whole = expected_output(layer)
    if isinstance(op, Conv2dShape):
        whole = whole.transpose(0, 2, 3, 1).reshape(-1, op.out_channels)
    looked = sample(layer, rows=20, columns=20)
    np.testing.assert_allclose(looked.expected, looked.of(whole), rtol=1e-12, atol=1e-12)
    assert {0, len(whole) - 1} <= set(looked.rows)
    assert {0, whole.shape[1] - 1} <= set(looked.columns)


def test_a_small_op_is_looked_at_as_a_whole() -> None:
    looked = sample(random_layer(LinearShape(3, 8, 5), FP32, None))
    assert looked.expected.shape == (3, 5)


def test_symmetric_recipes_have_no_zero_points() -> None:
    layer = random_layer(parse_op_shape(CONVS[0]), Precision("w8a8"), recipes.conv_symmetric_recipe(8, 8))
    assert (layer.input_zero_point, layer.output_zero_point) == (0, 0)
    assert layer.input.dtype == np.int8
