"""The contract of every Simulator: torch and ONNX Runtime compute the same numbers for any assembly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from quantized_models import assemble, cnn, mlp, read, sample_inputs, tied_cnn, transformer, uniform
from small_models import images, small_cnn

from search.assembly import Assembly
from search.errors import BadSubmission, UnsupportedOp
from search.graph import Graph
from search.simulation.onnxruntime_simulator import OnnxRuntimeSimulator
from search.simulation.simulator import Simulator
from search.simulation.torch_simulator import TorchSimulator

SIMULATORS = {"torch": TorchSimulator, "onnxruntime": OnnxRuntimeSimulator}
CASES = {
    "cnn-fp32": (cnn, {"conv": "fp32", "linear": "fp32"}),
    "cnn-w8a8": (cnn, {}),
    "cnn-w4a8": (cnn, {"conv": "w4a8", "linear": "w4a8"}),
    "tied-cnn-w8a8": (tied_cnn, {}),
    "cnn-linear-dynamic": (cnn, {"conv": "fp32", "linear": "w8a8-dynamic"}),
    "transformer-fp32": (transformer, {"linear": "fp32", "embedding": "fp32"}),
    "transformer-w8a8": (transformer, {}),
    "transformer-w4a8": (transformer, {"linear": "w4a8"}),
    "transformer-dynamic": (transformer, {"linear": "w8a8-dynamic"}),
    "transformer-w4a16": (transformer, {"linear": "w4a16-g32"}),
    "mlp-w8a8": (mlp, {}),
    "mlp-w4a16": (mlp, {"linear": "w4a16-g32"}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Graph, Assembly]:
    build, precisions = CASES[request.param]
    graph = read(build())
    return graph, assemble(graph, uniform(graph, **precisions))


def agree(a: np.ndarray, b: np.ndarray) -> None:
    """Equal but for single codes that round the other way: float sums differ in their last bits."""
    spread = float(np.abs(b).max())
    difference = np.abs(a - b)
    assert a.shape == b.shape
    assert np.median(difference) <= 2e-5 * spread
    assert difference.max() <= 3e-2 * spread


def test_both_compute_the_same_outputs(case: tuple[Graph, Assembly]) -> None:
    graph, assembly = case
    inputs = sample_inputs(graph, seed=11)
    outputs = [simulator(graph).run(inputs, assembly) for simulator in SIMULATORS.values()]
    assert outputs[0].keys() == outputs[1].keys() == {info.name for info in graph.outputs}
    for name, value in outputs[0].items():
        agree(value, outputs[1][name])


def test_both_hand_out_the_same_tensors(case: tuple[Graph, Assembly]) -> None:
    graph, assembly = case
    inputs = sample_inputs(graph, seed=12)
    keep = sorted({layer.quantized_tensor for layer in graph.layers} | {layer.output for layer in graph.layers})
    torch, onnxruntime = (simulator(graph).run(inputs, assembly, keep) for simulator in SIMULATORS.values())
    for name in keep:
        agree(torch[name], onnxruntime[name])


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_both_round_activations_of_few_bits_alike(bits: int) -> None:
    graph = read(cnn())
    assembly = assemble(graph, uniform(graph))
    ratio = 255 / (2**bits - 1)
    narrow = {
        name: replace(
            old,
            scale=float(np.float32(old.scale * ratio)),
            zero_point=round(old.zero_point / ratio),
            numerics=replace(old.numerics, bits=bits),
        )
        for name, old in assembly.quantizers.items()
    }
    assembly = replace(assembly, quantizers=narrow)
    tensor = graph.layer("block.conv2").quantized_tensor
    inputs = sample_inputs(graph, seed=13)
    kept = [made(graph).run(inputs, assembly, [tensor])[tensor] for made in SIMULATORS.values()]
    assert len(np.unique(kept[0])) <= 2**bits
    assert np.mean(np.abs(kept[0] - kept[1]) > 1e-4) < 0.01


@pytest.mark.parametrize("simulator", SIMULATORS.values(), ids=SIMULATORS)
class TestEverySimulator:
    def test_a_kept_output_quantized_tensor_lies_on_its_grid(self, simulator: type[Simulator]) -> None:
        graph = read(cnn())
        assembly = assemble(graph, uniform(graph))
        tensor = graph.layer("block.conv2").quantized_tensor
        kept = simulator(graph).run(sample_inputs(graph), assembly, [tensor])[tensor]  # type: ignore[call-arg]
        steps = kept / np.float32(assembly.quantizers[tensor].scale)
        assert np.abs(steps - np.rint(steps)).max() < 1e-3
        assert len(np.unique(np.rint(steps))) <= 256

    def test_a_tensor_quantized_for_its_readers_only_is_kept_in_float(self, simulator: type[Simulator]) -> None:
        graph = read(cnn())
        assembly = assemble(graph, {"head": "w8a8"})
        tensor = graph.layer("head").input
        run = simulator(graph).run  # type: ignore[call-arg]
        inputs = sample_inputs(graph)
        assert np.array_equal(run(inputs, assembly, [tensor])[tensor], run(inputs, None, [tensor])[tensor])

    def test_perturb_gives_what_run_gives(self, simulator: type[Simulator]) -> None:
        graph = read(cnn())
        whole = assemble(graph, uniform(graph))
        inputs = sample_inputs(graph)
        single = [assemble(graph, {name: "w4a8"}) for name in ("stem", "project", "head")]
        made = simulator(graph)  # type: ignore[call-arg]
        for assembly, outputs in zip([whole, *single], made.perturb(inputs, [whole, *single]), strict=True):
            for name, value in made.run(inputs, assembly).items():
                np.testing.assert_allclose(outputs[name], value, rtol=1e-5, atol=1e-5)

    def test_a_kept_input_is_what_was_given_unless_its_producer_quantizes_it(self, simulator: type[Simulator]) -> None:
        graph = read(mlp())
        assembly = assemble(graph, uniform(graph))
        inputs = sample_inputs(graph)
        made = simulator(graph)  # type: ignore[call-arg]
        assert np.array_equal(made.run(inputs, assembly, ["x"])["x"], inputs["x"])
        everywhere = replace(assembly, output_quantized=frozenset({"x"}))
        kept = made.run(inputs, everywhere, ["x"])["x"]
        assert 0 < np.abs(kept - inputs["x"]).max() <= assembly.quantizers["x"].scale

    def test_a_fixed_batch_runs_any_number_of_samples(self, simulator: type[Simulator]) -> None:
        fixed, free = simulator(small_cnn(batch=4)), simulator(small_cnn())  # type: ignore[call-arg]
        assembly = assemble(fixed.graph, {"stem": "w8a8", "block1": "w4a8"})
        for count in (1, 4, 8, 11):
            data = images(count, seed=count)
            for each in (None, assembly):
                expected, found = (made.run(data, each, keep=["silu", "image"]) for made in (free, fixed))
                assert expected.keys() == found.keys()
                for name, values in expected.items():
                    assert found[name].shape == values.shape
                    np.testing.assert_allclose(found[name], values, atol=1e-5)
            (perturbed,) = fixed.perturb(data, [assembly])
            np.testing.assert_allclose(perturbed["logits"], free.run(data, assembly)["logits"], atol=1e-5)


def test_onnxruntime_refuses_unknown_tensors_and_missing_inputs() -> None:
    graph = read(mlp())
    simulator = OnnxRuntimeSimulator(graph)
    with pytest.raises(BadSubmission) as caught:
        simulator.run(sample_inputs(graph), None, ["nowhere"])
    assert caught.value.code == "tensor_not_in_model"
    with pytest.raises(BadSubmission) as caught:
        simulator.run({})
    assert caught.value.code == "input_missing"
    assert not simulator.is_differentiable


def test_onnxruntime_runs_ops_that_no_table_of_ours_has_and_keeps_few_sessions() -> None:
    model = cnn()
    pool = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    pool.op_type = "GlobalLpPool"
    graph = read(model)
    with pytest.raises(UnsupportedOp):
        TorchSimulator(graph)
    simulator = OnnxRuntimeSimulator(graph, sessions=2)
    inputs = sample_inputs(graph)
    reference = simulator.run(inputs)[graph.outputs[0].name]
    for name in ("last", "head"):
        changed = simulator.run(inputs, assemble(graph, {name: "w4a8"}))[graph.outputs[0].name]
        assert 0 < np.abs(changed - reference).max() < np.abs(reference).max()
    assert len(simulator._open) == 2
