"""Op shapes: signatures round trip, sizes agree with brute force, and nonsense is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.errors import KernelsError
from kernels.op_shape import Conv2dShape, EmbeddingShape, LinearShape, OpShape, parse_op_shape
from kernels.reference import conv2d

SIZE = st.integers(1, 9)
linear_shapes = st.builds(LinearShape, SIZE, SIZE, SIZE, st.booleans())
embedding_shapes = st.builds(EmbeddingShape, SIZE, SIZE, SIZE)


@st.composite
def conv_shapes(draw: st.DrawFn) -> Conv2dShape:
    small = st.integers(1, 3)
    groups = draw(small)
    kernel, dilation = (draw(small), draw(small)), (draw(small), draw(small))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = tuple(draw(st.integers(0, 2)) for _ in range(4))
    return Conv2dShape(
        batch=draw(small),
        in_channels=groups * draw(small),
        height=reach[0] + draw(st.integers(0, 5)),
        width=reach[1] + draw(st.integers(0, 5)),
        out_channels=groups * draw(small),
        kernel=kernel,
        stride=(draw(small), draw(small)),
        padding=padding,  # type: ignore[arg-type]
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
    )


@given(st.one_of(linear_shapes, embedding_shapes, conv_shapes()))
def test_signatures_round_trip(op: OpShape) -> None:
    assert parse_op_shape(op.signature) == op


@given(conv_shapes())
def test_conv_sizes_equal_what_a_convolution_makes(op: Conv2dShape) -> None:
    x = np.ones((op.batch, op.in_channels, op.height, op.width), np.int64)
    w = np.ones((op.out_channels, op.in_channels // op.groups, *op.kernel), np.int64)
    out = conv2d(x, w, stride=op.stride, padding=op.padding, dilation=op.dilation, groups=op.groups)
    assert out.shape == (op.batch, op.out_channels, *op.out_size)
    assert (x.size, w.size, out.size) == (op.input_elements, op.weight_count, op.output_elements)
    assert op.macs == out.size * w[0].size
    if not any(op.padding):
        assert int(out.sum()) == op.macs


def test_linear_and_embedding_counts() -> None:
    linear = LinearShape(2, 3, 5)
    assert (linear.macs, linear.weight_count, linear.input_elements, linear.output_elements) == (30, 15, 6, 10)
    embedding = EmbeddingShape(2, 3, 5)
    assert (embedding.macs, embedding.weight_count, embedding.output_elements) == (0, 15, 10)


@pytest.mark.parametrize(
    "text",
    ["", "linear", "linear_m1_k2_n3", "linear_m1_k2_n3_b2x", "linear_m01_k2_n3_b1", "conv3d_n1", "linear_mx_k2_n3_b1",
     "linear_m1_k2_n3_b1_extra", "conv2d_n1_c1_h4_w4_o1_k3_s1x1_p0x0x0x0_d1x1_g1_b1x"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(KernelsError) as caught:
        parse_op_shape(text)
    assert caught.value.code == "bad_op_shape"
