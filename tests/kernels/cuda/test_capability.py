"""The capability table against what the compiler really emits, and how devices find their column in it."""

from __future__ import annotations

import pytest

from kernels.cuda.capability import (
    ARCHITECTURES,
    INSTRUCTIONS,
    PRECISIONS,
    Via,
    architecture,
    capability,
    chosen_instruction,
    lowering,
    nearest_listed,
    shared_bytes_limit,
)  # fmt: skip
from kernels.cuda.catalog import KERNELS
from kernels.cuda.epilogue import Output
from kernels.cuda.int8 import MAX_K
from kernels.cuda.launch import launches
from kernels.cuda.probe import PROBED, probe
from kernels.errors import KernelsError
from kernels.op_shape import parse_op_shape
from kernels.precision import Precision


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_table_is_what_the_compiler_emits(arch: str) -> None:
    assert probe(arch) == {name: INSTRUCTIONS[name][arch] for name in PROBED}


def test_every_instruction_is_probed() -> None:
    assert set(PROBED) == set(INSTRUCTIONS)


def test_int4_is_native_exactly_where_its_instruction_is() -> None:
    native = {arch for arch in ARCHITECTURES if not lowering("mma.m8n8k32.s4", arch).emulated}
    assert {arch for arch, via in PRECISIONS["w4a4"].items() if via is Via.NATIVE} == native
    assert native == {"sm_75", "sm_80", "sm_86", "sm_87", "sm_89"}


@pytest.mark.parametrize(
    ("version", "name", "listed"),
    [((7, 5), "sm_75", "sm_75"), ((8, 8), "sm_88", "sm_87"), ((9, 0), "sm_90a", "sm_90a"),
     ((10, 7), "sm_107a", "sm_103a"), ((12, 1), "sm_121a", "sm_120a")],
)  # fmt: skip
def test_a_device_finds_its_column(version: tuple[int, int], name: str, listed: str) -> None:
    assert architecture(*version) == name
    assert nearest_listed(name) == listed


def test_only_what_fits_into_a_block_and_into_32_bits_is_launched() -> None:
    op = parse_op_shape("linear_m4096_k4096_n4096_b1")
    offered = {
        arch: {launch.name for launch in launches(op, Precision("w8a8"), arch, 100, Output.S8)}
        for arch in ARCHITECTURES
    }
    assert "gemm_s8 128x256" not in offered["sm_75"]
    assert "gemm_s8 128x256" in offered["sm_86"]
    assert "gemm_s8_wgmma 128x256" in offered["sm_90a"]
    too_long = parse_op_shape(f"linear_m8_k{MAX_K + 1}_n8_b1")
    assert launches(too_long, Precision("w8a8"), "sm_80", 100, Output.S8) == []
    for channels, fits in ((MAX_K // 9, True), (MAX_K // 9 + 1, False)):
        picture = parse_op_shape(f"conv2d_n1_c{channels}_h3_w3_o8_k3x3_s1x1_p1x1x1x1_d1x1_g1_b1")
        for precision in ("w8a8", "w4a8"):
            assert bool(launches(picture, Precision(precision), "sm_80", 100, Output.S8)) is fits
    assert shared_bytes_limit("sm_121a") == 99 * 1024
    assert shared_bytes_limit("gfx942") == 0


@pytest.mark.parametrize("arch", ["sm_70", "sm_130a", "gfx942", ""])
def test_an_unknown_architecture_runs_nothing(arch: str) -> None:
    assert capability(arch, "w8a8") is Via.UNSUPPORTED
    with pytest.raises(KernelsError, match="not in the capability table") as caught:
        lowering("mma.m16n8k32.s8", arch)
    assert caught.value.code == "unknown_architecture"


def test_a_device_before_turing_is_refused() -> None:
    with pytest.raises(KernelsError, match=r"7\.0 is older than Turing") as caught:
        architecture(7, 0)
    assert caught.value.code == "unknown_architecture"


def test_precisions_are_looked_up_without_group_or_dynamic() -> None:
    assert capability("sm_80", "w4a16-g128") is Via.VIA_FP16
    assert capability("sm_80", "w8a8-dynamic") is Via.NATIVE
    assert capability("sm_90a", "w4a4") is Via.VIA_INT8
    assert capability("sm_80", "w3a3") is Via.UNSUPPORTED
    assert capability("sm_80", "w8a16") is Via.UNSUPPORTED  # tensor cores could; no kernel here does


def test_kernels_fall_back_to_the_instruction_an_architecture_has() -> None:
    assert chosen_instruction(("mma.m16n8k32.s8", "mma.m8n8k16.s8"), "sm_75") == "mma.m8n8k16.s8"
    assert chosen_instruction(("mma.m16n8k32.s8", "mma.m8n8k16.s8"), "sm_80") == "mma.m16n8k32.s8"
    assert chosen_instruction(("tcgen05.i8",), "sm_80") is None


def test_kernels_name_instructions_of_the_table_and_have_names_of_their_own() -> None:
    assert all(name in INSTRUCTIONS for source in KERNELS for name in source.instructions)
    assert len({source.name for source in KERNELS}) == len(KERNELS)
