"""The roofline is a lower bound: generous, monotone, and never zero work for free."""

from __future__ import annotations

from kernels.backends.fake import FAKE_DEVICE
from kernels.op_shape import Conv2dShape, EmbeddingShape, LinearShape
from kernels.precision import FP32, Precision
from kernels.roofline import roofline_us


def test_more_work_takes_longer_and_more_threads_less() -> None:
    small, large = LinearShape(64, 256, 256), LinearShape(64, 512, 256)
    assert roofline_us(large, FP32, FAKE_DEVICE, 1) == 2 * roofline_us(small, FP32, FAKE_DEVICE, 1)
    assert roofline_us(small, FP32, FAKE_DEVICE, 2) == roofline_us(small, FP32, FAKE_DEVICE, 1) / 2
    assert roofline_us(small, Precision("w8a8"), FAKE_DEVICE, 1) < roofline_us(small, FP32, FAKE_DEVICE, 1)


def test_one_row_is_bound_by_reading_its_weights() -> None:
    op = LinearShape(1, 4096, 4096)
    int8, int4 = (roofline_us(op, Precision(name), FAKE_DEVICE, 1) for name in ("w8a8", "w4a8"))
    assert int8 == 2 * int4


def test_winograd_and_embeddings_are_allowed_for() -> None:
    conv = Conv2dShape(1, 64, 56, 56, 64, (3, 3), padding=(1, 1, 1, 1))
    as_linear = LinearShape(56 * 56, 64 * 9, 64)
    assert conv.macs == as_linear.macs
    assert roofline_us(conv, FP32, FAKE_DEVICE, 1) == roofline_us(as_linear, FP32, FAKE_DEVICE, 1) / 4
    assert 0 < roofline_us(EmbeddingShape(4, 10**6, 64), FP32, FAKE_DEVICE, 1) < 0.01
