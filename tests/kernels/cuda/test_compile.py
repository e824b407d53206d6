"""The compiler's cache and what it says when something is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kernels.cuda import compile as compiler
from kernels.cuda.compile import check_architecture, compile_kernel, compile_text
from kernels.cuda.int8 import EMPTY, GEMM_S8
from kernels.cuda.source import KernelSource, expand_headers, read_source
from kernels.errors import BackendUnavailable, CompilationFailed, KernelsError, UnsupportedInstruction

ADD = 'extern "C" __global__ void add(int* x) { *x += STEP; }'


def test_a_second_compilation_comes_from_the_cache(tmp_path: Path) -> None:
    first = compile_kernel(EMPTY, "sm_80", cache=tmp_path / "new")
    second = compile_kernel(EMPTY, "sm_80", cache=tmp_path / "new")
    assert (first.cached, second.cached) == (False, True)
    assert second.code == first.code
    assert second.code.startswith(b"\x7fELF")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"{first.key}.cubin"]


def test_the_key_covers_text_macros_and_architecture(tmp_path: Path) -> None:
    variants = [
        (ADD, "sm_80", {"STEP": 1}), (ADD, "sm_86", {"STEP": 1}), (ADD, "sm_80", {"STEP": 2}),
        (ADD + "//", "sm_80", {"STEP": 1}),
    ]  # fmt: skip
    keys = {compile_text(text, "add", arch, defines, tmp_path).key for text, arch, defines in variants}
    assert len(keys) == len(variants)


def test_a_damaged_cache_entry_is_compiled_again(tmp_path: Path) -> None:
    first = compile_text(ADD, "add", "sm_80", {"STEP": 1}, tmp_path)
    (tmp_path / f"{first.key}.cubin").write_bytes(b"half")
    again = compile_text(ADD, "add", "sm_80", {"STEP": 1}, tmp_path)
    assert not again.cached
    assert (tmp_path / f"{first.key}.cubin").read_bytes() == again.code


def test_a_cache_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KernelsError, match="cannot use the kernel cache") as caught:
        compile_text(ADD, "add", "sm_80", {"STEP": 1}, tmp_path / "file")
    assert caught.value.code == "kernel_cache"


@pytest.mark.parametrize("arch", ["sm_70", "sm_99", "compute_80", "volta", ""])
def test_an_unknown_architecture_is_refused_with_the_known_ones(arch: str) -> None:
    with pytest.raises(KernelsError, match="does not compile for") as caught:
        check_architecture(arch)
    assert caught.value.code == "unknown_architecture"
    assert "sm_75" in caught.value.hint


def test_a_missing_instruction_is_told_from_a_defect() -> None:
    asks = 'extern "C" __global__ void f() { asm volatile("cp.async.commit_group;"); }'
    with pytest.raises(
        UnsupportedInstruction, match=r"sm_75 lacks an instruction of kernel 'kernel': .*sm_80"
    ) as lacks:
        compile_text(asks, "f", "sm_75", {})
    assert lacks.value.code == "unsupported_instruction"
    with pytest.raises(CompilationFailed, match=r"(?s)-DSTEP=1.*undefined") as wrong:
        compile_text(ADD.replace("*x", "*y"), "add", "sm_80", {"STEP": 1})
    assert wrong.value.code == "compilation_failed"


def test_an_unknown_tile_is_refused_with_the_known_ones() -> None:
    with pytest.raises(KernelsError, match="has no tile '7x7'") as caught:
        compile_kernel(GEMM_S8, "sm_80", "7x7")
    assert caught.value.code == "unknown_tile"
    assert "128x128" in caught.value.hint


def test_without_nvrtc_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.nvrtc_version.cache_clear()
    compiler.supported_architectures.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendUnavailable, match="NVRTC is not installed") as caught:
        compile_text(ADD, "add", "sm_80", {"STEP": 1})
    assert caught.value.code == "no_nvrtc"
    assert "bitwright-server[cuda13]" in caught.value.hint


def test_importing_the_kernels_loads_no_cuda_library_and_no_numpy() -> None:
    words = "capability, compile, disassembly, epilogue, int8, probe, source"
    probe = (
        f"import sys; from kernels.cuda import {words};"
        "print(*sorted({'cuda', 'torch', 'numpy'} & {name.split('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_headers_are_written_in_once_and_lines_keep_their_numbers() -> None:
    text = read_source("gemm_s8.cu")
    assert text.count("struct Epilogue {") == 1
    assert '#include "' not in text
    broken = expand_headers('#include "primitives.cuh"\nKERNEL void f() {\n  nonsense;\n}', name="mine.cu")
    with pytest.raises(CompilationFailed, match=r"mine\.cu\(3\)"):
        compile_text(broken, "f", "sm_80", {})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(KernelsError, match=r"no CUDA source 'absent\.cu'") as caught:
        KernelSource("absent", "absent.cu", "absent", {"default": {}}).text()
    assert caught.value.code == "no_cuda_source"
