"""The recipes of the shipped profiles, in one place so that two runtimes with equal numerics share a scan."""

from __future__ import annotations

from kernels.recipe import Granularity, Numerics, Recipe

GROUP_SIZE = 32


def weight_per_channel(bits: int, *, reduced_range: bool = False) -> Numerics:
    return Numerics(bits, symmetric=True, signed=True, granularity=Granularity.CHANNEL, reduced_range=reduced_range)


ACTIVATION_U8 = Numerics(8, symmetric=False, signed=False, granularity=Granularity.TENSOR)
ACTIVATION_U8_DYNAMIC = Numerics(8, symmetric=False, signed=False, granularity=Granularity.TENSOR, dynamic=True)
WEIGHT_INT4_GROUPS = Numerics(4, symmetric=True, signed=True, granularity=Granularity.GROUP, group_size=GROUP_SIZE)
ROW_INT8_PER_GROUP = Numerics(
    8, symmetric=True, signed=True, granularity=Granularity.ROW, group_size=GROUP_SIZE, dynamic=True
)


def conv_recipe(weight_bits: int, *, reduced_range: bool = False) -> Recipe:
    """Integer convolution: needs a quantizer behind it (QLinearConv), which an absorbed ReLU lets start at 0."""
    return Recipe(
        name=f"conv2d-w{weight_bits}a8-static{'-reduced' * (reduced_range and weight_bits == 8)}",
        weight=weight_per_channel(weight_bits, reduced_range=reduced_range and weight_bits == 8),
        activation=ACTIVATION_U8,
        output_quantized=True,
    )


def linear_recipe(weight_bits: int, *, reduced_range: bool = False) -> Recipe:
    """Integer matrix product on statically quantized activations with a float result."""
    return Recipe(
        name=f"linear-w{weight_bits}a8-static{'-reduced' * (reduced_range and weight_bits == 8)}",
        weight=weight_per_channel(weight_bits, reduced_range=reduced_range and weight_bits == 8),
        activation=ACTIVATION_U8,
        output_quantized=False,
    )


def linear_dynamic_recipe(*, reduced_range: bool = False) -> Recipe:
    """Integer matrix product whose activation range is taken from the whole tensor at run time."""
    return Recipe(
        name=f"linear-w8a8-dynamic{'-reduced' * reduced_range}",
        weight=weight_per_channel(8, reduced_range=reduced_range),
        activation=ACTIVATION_U8_DYNAMIC,
        output_quantized=False,
    )


LINEAR_W4_GROUPS_INT8_INSIDE = Recipe(
    name="linear-w4-g32-int8-inside",
    weight=WEIGHT_INT4_GROUPS,
    activation=None,
    output_quantized=False,
    internal_activation=ROW_INT8_PER_GROUP,
)
LINEAR_W4_GROUPS_FLOAT = Recipe(
    name="linear-w4-g32-float", weight=WEIGHT_INT4_GROUPS, activation=None, output_quantized=False
)
EMBEDDING_W8 = Recipe(name="embedding-w8-rows", weight=weight_per_channel(8), activation=None, output_quantized=False)


def activation_symmetric(bits: int) -> Numerics:
    """Activations of the CUDA kernels: zero point 0, so that the zeros which pad a convolution are code 0."""
    return Numerics(bits, symmetric=True, signed=True, granularity=Granularity.TENSOR)


def conv_symmetric_recipe(weight_bits: int, activation_bits: int) -> Recipe:
    """Integer convolution on symmetric activations that requantizes what it writes."""
    return Recipe(
        name=f"conv2d-w{weight_bits}a{activation_bits}-symmetric",
        weight=weight_per_channel(weight_bits),
        activation=activation_symmetric(activation_bits),
        output_quantized=True,
    )


def linear_symmetric_recipe(weight_bits: int, activation_bits: int) -> Recipe:
    """Integer matrix product on symmetric activations with a float result."""
    return Recipe(
        name=f"linear-w{weight_bits}a{activation_bits}-symmetric",
        weight=weight_per_channel(weight_bits),
        activation=activation_symmetric(activation_bits),
        output_quantized=False,
    )


def linear_groups_float(group_size: int) -> Recipe:
    """4-bit weights in groups along the reduction, widened inside the kernel; activations stay float."""
    weight = Numerics(4, symmetric=True, signed=True, granularity=Granularity.GROUP, group_size=group_size)
    return Recipe(name=f"linear-w4-g{group_size}-float", weight=weight, activation=None, output_quantized=False)
