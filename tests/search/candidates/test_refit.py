"""Sequential refit: better on its own upstream, same codes, same answer by walk, by spilling walk and by running."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import images, recipes_for, rows_of_32, small_cnn, small_mlp

from search.candidates.assemble import assemble
from search.candidates.finish import finish_candidates
from search.candidates.refit import refit_sequentially
from search.errors import NotEnoughData
from search.simulation.simulator import Simulator
from search.simulation.torch_simulator import TorchSimulator


class PlainSimulator:
    """A simulator that only runs, as one over a foreign runtime does."""

    is_differentiable = False

    def __init__(self, simulator: TorchSimulator) -> None:
        self.graph = simulator.graph
        self.run = simulator.run
        self.perturb = simulator.perturb


def kl(exact, approximate):
    exact, approximate = (x.astype(np.float64) for x in (exact, approximate))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (exact, approximate))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def chunked(inputs, size):
    ((name, values),) = inputs.items()
    return [{name: values[at : at + size]} for at in range(0, len(values), size)]


def assembly_of(graph, simulator, chunks, precision, bits):
    candidates = finish_candidates(simulator, recipes_for(graph, bits), chunks)
    return assemble(graph, {name: precision for name, found in candidates.candidates if found == precision}, candidates)


@pytest.fixture(scope="module")
def cnn():
    graph = small_cnn(width=16)
    simulator = TorchSimulator(graph)
    chunks = chunked(images(192), 64)
    return simulator, chunks, assembly_of(graph, simulator, chunks, "w2a8", (2,))


def test_less_loss_on_unseen_data_and_identical_codes(cnn):
    simulator, chunks, assembly = cnn
    refitted = refit_sequentially(simulator, assembly, chunks)
    unseen = images(256, seed=9)
    exact = simulator.run(unseen)["logits"]
    before, after = (kl(exact, simulator.run(unseen, one)["logits"]) for one in (assembly, refitted))
    assert after < 0.6 * before
    assert refitted.quantizers == assembly.quantizers
    for name, candidate in assembly.candidates.items():
        assert np.array_equal(candidate.weight.codes, refitted.candidates[name].weight.codes)
        assert candidate.size_bytes == refitted.candidates[name].size_bytes
        assert (refitted.candidates[name].weight.scale > 0).all()


def test_walk_spilled_walk_and_plain_runs_agree(cnn):
    simulator, chunks, assembly = cnn
    plain: Simulator = PlainSimulator(simulator)  # type: ignore[assignment]
    walked = refit_sequentially(simulator, assembly, chunks)
    spilled = refit_sequentially(simulator, assembly, chunks, resident_bytes=50_000)
    ran = refit_sequentially(plain, assembly, chunks)
    for name, candidate in walked.candidates.items():
        assert np.array_equal(candidate.weight.scale, spilled.candidates[name].weight.scale)
        np.testing.assert_allclose(candidate.weight.scale, ran.candidates[name].weight.scale, rtol=2e-3)


def test_output_means_are_exact_up_to_the_int32_bias_step(cnn):
    simulator, chunks, assembly = cnn
    refitted = refit_sequentially(simulator, assembly, chunks)
    last = refitted.candidates["fc"].residual
    outputs = [(simulator.run(chunk)["logits"], simulator.run(chunk, refitted)["logits"]) for chunk in chunks]
    exact, quantized = (np.concatenate(parts).astype(np.float64) for parts in zip(*outputs, strict=True))
    half_a_bias_step = 0.5 * refitted.quantizers["features"].scale * refitted.candidates["fc"].weight.scale
    assert (np.abs(quantized.mean(0) - exact.mean(0)) <= half_a_bias_step + 1e-4).all()
    wrong = np.square(quantized - exact).sum() / np.square(exact - exact.mean(0)).sum()
    assert wrong == pytest.approx(last, rel=0.02)


def test_partly_quantized_and_multilayer_perceptron():
    graph = small_mlp()
    simulator = TorchSimulator(graph)
    chunks = chunked(rows_of_32(128), 32)
    candidates = finish_candidates(simulator, recipes_for(graph, (8, 2)), chunks)
    mixed = assemble(graph, {"up": "w2a8", "middle": "fp32", "down": "w4a16-g32"}, candidates)
    seen: list[tuple[int, int]] = []
    refitted = refit_sequentially(simulator, mixed, chunks, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert set(refitted.candidates) == {"up", "down"}
    assert refitted.candidates["down"].bias is not None


def test_nothing_to_refit_and_no_data(cnn):
    simulator, chunks, assembly = cnn
    empty = type(assembly)({}, {})
    assert refit_sequentially(simulator, empty, chunks) is empty
    with pytest.raises(NotEnoughData):
        refit_sequentially(simulator, assembly, [])


def test_fixed_batch_is_walked_in_its_own_pieces():
    graph, free = small_cnn(batch=16), small_cnn()
    chunks = chunked(images(40), 20)
    fixed_simulator, free_simulator = TorchSimulator(graph), TorchSimulator(free)
    assembly = assembly_of(free, free_simulator, chunks, "w4a8", (4,))
    fixed, whole = (refit_sequentially(simulator, assembly, chunks) for simulator in (fixed_simulator, free_simulator))
    for name, candidate in whole.candidates.items():
        np.testing.assert_allclose(candidate.weight.scale, fixed.candidates[name].weight.scale, rtol=1e-5)
