"""Networks of CUDA kernels on the fake device compute what the simulator says, and the fit predicts their time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.backends.cuda import Cuda
from kernels.backends.cuda_device import DeviceClock
from kernels.backends.cuda_fake import FakeCudaDevice
from kernels.backends.cuda_kernels import OurKernels
from kernels.backends.cuda_opponents import opponents
from kernels.cuda.epilogue import Output
from kernels.cuda.launch import launches
from kernels.errors import NotMeasured
from kernels.op_shape import Conv2dShape, OpShape
from kernels.operating_point import OperatingPoint
from kernels.precision import Precision
from kernels.profiles.cuda import cuda_profile
from search.candidates.assemble import assemble
from search.candidates.finish import finish_candidates
from search.graph import Graph
from search.latency.cuda_network import CudaNetwork
from search.latency.measure import random_inputs
from search.latency.model import measure_model, noise_candidates
from search.latency.rows import required_rows
from search.onnx_import import operating_shapes
from search.simulation.torch_simulator import TorchSimulator
from tests.search.small_models import residual_mlp, small_cnn, small_mlp

POINT = OperatingPoint(batch=2)
HALF_PRECISION = {"fp32": 0.01, "w4a16-g128": 0.01, "w8a8": 0.02, "w4a8": 0.02, "w4a4": 0.06}
"""Of the largest output: a code that half precision rounds the other way is a step, and 4 bits have long steps."""


def ours(device: FakeCudaDevice, op: OpShape, precision: Precision) -> list[str]:
    output = Output.S8 if isinstance(op, Conv2dShape) else Output.F16
    return [each.name for each in launches(op, precision, device.arch, device.identity.cores, output)]


def both(
    graph: Graph, precision: str, arch: str = "sm_90a"
) -> tuple[CudaNetwork, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The network, its outputs, and what the simulator computes of the same assembly."""
    device = FakeCudaDevice(arch=arch)
    profile = cuda_profile("test", device.identity, arch)
    shapes = operating_shapes(graph, POINT)
    inputs = random_inputs(graph, shapes)
    rows = required_rows(graph, shapes, profile)
    recipes = {(layer, p.name): profile.recipe(op.kind, p) for layer, op, p in rows if p.name == precision != "fp32"}
    candidates = finish_candidates(TorchSimulator(graph), recipes, [inputs], rules=("min-max",))
    chosen = {layer: precision for layer, _, offered in rows if offered.name == precision}
    assembly = assemble(graph, {k: v for k, v in chosen.items() if (k, v) in candidates.candidates}, candidates)
    assert bool(assembly.candidates) == (precision != "fp32")
    network = CudaNetwork(graph, assembly, shapes, device, DeviceClock(), lambda op, p: ours(device, op, p))
    return network, network.run(inputs), TorchSimulator(graph).run(inputs, assembly)


@pytest.mark.parametrize("precision", ["fp32", "w8a8", "w4a8", "w4a4"])
def test_a_convolutional_network_computes_its_assembly(precision: str) -> None:
    network, found, expected = both(small_cnn(), precision)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=HALF_PRECISION[precision] * np.abs(value).max())
    kernels = [op.op_type for op in network.executed_ops()]
    if precision == "w8a8":
        assert any(kernel.startswith("conv_s8") for kernel in kernels)
        assert "quantize" in kernels
        assert "Relu" not in kernels[: kernels.index("quantize") + 2]
    network.close()


@pytest.mark.parametrize(
    ("precision", "arch"), [("w8a8", "sm_80"), ("w4a8", "sm_80"), ("w4a4", "sm_90a"), ("w4a4", "sm_80")]
)
def test_a_network_of_products_computes_its_assembly(precision: str, arch: str) -> None:
    network, found, expected = both(small_mlp(), precision, arch)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=HALF_PRECISION[precision] * np.abs(value).max())
    kernels = [op.op_type for op in network.executed_ops()]
    assert any(kernel.startswith("gemm_") for kernel in kernels)
    assert ("pack_nibbles" in kernels) == (precision == "w4a4")


@pytest.mark.parametrize("precision", ["w8a8", "w4a8", "w4a16-g128"])
def test_a_kernel_adds_the_residual_that_is_there_when_it_runs(precision: str) -> None:
    network, found, expected = both(residual_mlp(), precision)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=HALF_PRECISION[precision] * np.abs(value).max())
    ran = [op.op_type for op in network.executed_ops()]
    assert sum(kernel.endswith("+ residual") for kernel in ran) == 1
    assert ran.count("Add") == 1, "the other summand of the second comes after its product"


def test_a_second_run_takes_new_inputs() -> None:
    network, _, _ = both(small_mlp(), "w8a8")
    shapes = operating_shapes(small_mlp(), POINT)
    network.run(random_inputs(small_mlp(), shapes, seed=5))
    assert network._clock.now_ns() > 0


def test_a_kernel_that_is_not_there_is_named() -> None:
    graph, device = small_mlp(), FakeCudaDevice()
    profile = cuda_profile("test", device.identity, device.arch)
    shapes = operating_shapes(graph, POINT)
    rows = required_rows(graph, shapes, profile)
    candidates = noise_candidates(graph, profile, rows, random_inputs(graph, shapes))
    layer = next(name for name, _, precision in rows if precision.name == "w8a8")
    with pytest.raises(NotMeasured) as caught:
        CudaNetwork(
            graph, assemble(graph, {layer: "w8a8"}, candidates), shapes, device, DeviceClock(), lambda op, p: ["gone"]
        )
    assert caught.value.code == "kernel_unknown"


def test_a_model_is_measured_and_fitted_on_a_gpu() -> None:
    device = FakeCudaDevice()
    profile = replace(cuda_profile("cuda-local", device.identity, device.arch), measurable_here=True)
    backend = Cuda(profile, device, [OurKernels(device), *opponents(device)])
    measured = measure_model(small_cnn(), profile, backend, POINT)
    assert measured.fit.loo_mape is not None
    assert measured.fit.loo_mape < 0.1
    full = next(run for run in measured.fit.runs if not run.precisions)
    assert full.median_us > 0
    assert {row.executed_kernel.split(" ")[0] for row in measured.table.rows} >= {"torch"}
