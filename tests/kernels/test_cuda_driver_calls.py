"""Driver calls: what `cuda_driver` hands to CUDA's driver, read by a stand-in of it that is compiled here.

The bindings turn Python values into C ones; a pointer too many or a wrong order shows on a card only, and there at the
first launch. The stand-in takes the calls in C and prints what arrived.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

STUB = Path(__file__).with_name("driver_stub.c")
CALLS = """
from types import SimpleNamespace
from kernels.backends.cuda_device import Geometry, Work
from kernels.backends.cuda_driver import DriverCudaDevice
from kernels.cuda.epilogue import EpilogueArguments, Output
from kernels.cuda.launch import Operands, launches
from kernels.errors import KernelsError
from kernels.op_shape import LinearShape
from kernels.precision import Precision
from cuda.bindings import driver
assert int(driver.cuInit(0)[0]) == 0
device = object.__new__(DriverCudaDevice)
device._stream = SimpleNamespace(cuda_stream=0x7777)
wanted = {("gemm_s8", "128x256"), ("gemm_s8", "128x64"), ("gemm_s8_wgmma", "128x256")}
for each in launches(LinearShape(256, 512, 1024), Precision("w8a8"), "sm_90a", 132, Output.F16):
    if (each.source.name, each.tile) in wanted:
        kernel = device._load(b"\\x7fELF" + bytes(60), each.source.entry, each.shared_bytes)
        arguments = each.arguments(Operands(0xAAAA000, 0xBBBB000), EpilogueArguments(out=0xCCCC000))
        device.launch(kernel, Geometry(each.grid, (each.threads, 1, 1), each.shared_bytes), arguments, Work())
device.launch(kernel, Geometry((1, 1, 1), (32, 1, 1)), [], Work())
for call in (
    lambda: device.launch(kernel, Geometry((1, 1, 1), (32, 1, 1), 1), [], Work()),
    lambda: device._load(b"not machine code", "x", 0),
):
    try:
        call()
    except KernelsError as error:
        print('{"refused": "%s"}' % error.code)
"""


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    folder = tmp_path_factory.mktemp("driver")
    built = [
        "gcc",
        "-shared",
        "-fPIC",
        "-o",
        str(folder / "libcuda.so.1"),
        str(STUB),
        "-Wl,-soname,libcuda.so.1",
        "-ldl",
    ]
    subprocess.run(built, check=True)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("LD_LIBRARY_PATH"))))
    done = subprocess.run(
        [sys.executable, "-c", CALLS], capture_output=True, text=True, check=False,
        env={**os.environ, "LD_LIBRARY_PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def named(calls: list[dict[str, Any]], name: str) -> list[Any]:
    return [each[name] for each in calls if name in each]


def test_arguments_arrive_as_the_values_they_point_to(calls: list[dict[str, Any]]) -> None:
    wide, flat, wgmma, empty = (each for each in calls if "launch" in each)
    assert wide["launch"] == [0x3000, 8, 1, 2, 256, 1, 1, 98304, 0x7777, 0]
    assert flat["launch"][1:8] == [32, 1, 2, 128, 1, 1, 49152]
    assert (wide["first"], flat["first"]) == (0xAAAA000, 0xAAAA000)
    assert (wgmma["first"], wgmma["last word"]) == (0xAAAA000, 0xAAAA000 + 15), "all 128 bytes of the map, by value"
    assert empty["launch"][4:7] == [32, 1, 1]
    assert named(calls, "function") == ["gemm_s8", "gemm_s8", "gemm_s8_wgmma"]


def test_only_kernels_above_48_kib_ask_for_more_shared_memory(calls: list[dict[str, Any]]) -> None:
    dynamic_shared_memory = 8
    assert named(calls, "attribute") == [[dynamic_shared_memory, 98304], [dynamic_shared_memory, 217152]]


def test_maps_describe_bytes_in_boxes_of_128_swizzled_columns(calls: list[dict[str, Any]]) -> None:
    activations, weights = named(calls, "map")
    # type, rank, columns, rows, pitch, box, steps, interleave, swizzle over 128 bytes, zeros outside
    assert activations == [0, 2, 512, 256, 512, 128, 128, 1, 1, 0, 3, 0]
    assert weights == [0, 2, 512, 1024, 512, 128, 256, 1, 1, 0, 3, 0]


def test_answers_of_the_driver_become_errors_with_codes(calls: list[dict[str, Any]]) -> None:
    assert named(calls, "refused") == ["device_lost", "op_failed"]
