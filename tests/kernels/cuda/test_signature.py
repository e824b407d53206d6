"""What the host passes is what the sources declare, read from the sources themselves."""

from __future__ import annotations

import ctypes

import pytest

from kernels.cuda.conv import SOURCES, ConvArguments, DepthwiseArguments
from kernels.cuda.epilogue import EpilogueArguments
from kernels.cuda.signature import read_signature, signature_of
from kernels.errors import KernelsError

TEXT = """
struct Pair {
  const u8* first;  // an address, not a number
  s32 m, n;
  float scale;
};
KERNEL void __launch_bounds__(32 * (WARPS)) work(Pair p, const s32* out, s32 count) { }
"""


def fields(kind: type[ctypes.Structure]) -> list[tuple[str, int]]:
    return [(name, ctypes.sizeof(field)) for name, field in kind._fields_]  # type: ignore[misc]


def test_arguments_come_out_in_the_order_of_the_source() -> None:
    pair, out, count = read_signature(TEXT, "work").arguments(
        {"count": 7, "p": {"m": 2, "n": 3, "first": 64, "scale": 0.5}, "out": 128}
    )
    assert (pair.first, pair.m, pair.n, pair.scale) == (64, 2, 3, 0.5)
    assert (out.value, count.value) == (128, 7)
    assert ctypes.sizeof(pair) == 24


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"p": {}}, "misses parameter count"),
        ({"p": {}, "count": 1, "extra": 1}, "no parameter extra"),
        ({"p": {"k": 1}, "count": 1}, r"no field p\.k"),
        ({"p": EpilogueArguments(), "count": 1}, "takes 24 bytes for p"),
    ],
)
def test_a_wrong_argument_is_an_error_and_not_a_number(values: dict[str, object], said: str) -> None:
    with pytest.raises(KernelsError, match=said) as caught:
        read_signature(TEXT, "work").arguments(values)
    assert caught.value.code == "bad_launch"


def test_a_null_pointer_needs_no_name() -> None:
    assert read_signature(TEXT, "work").arguments({"p": {}, "count": 1})[1].value == 0


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_structs_kept_in_python_are_those_of_the_source(source) -> None:  # type: ignore[no-untyped-def]
    by_name = dict(signature_of(source).parameters)
    own = DepthwiseArguments if source.name == "conv_depthwise" else ConvArguments
    assert fields(by_name["a"]) == fields(own)
    assert fields(by_name["e"]) == fields(EpilogueArguments)
