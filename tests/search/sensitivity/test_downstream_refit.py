"""The refit behind a perturbation: exact where the error is affine, harmless where there is none, and announced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from search.assembly import Assembly
from search.candidates.candidate_set import CandidateSet
from search.candidates.refit import refit_sequentially
from search.groups import group_layers
from search.loss.inference import LossKind, ModelLoss, OutputLoss
from search.sensitivity.downstream_refit import can_refit, perturb_refitted, refitted_outputs, to_exact, with_whole_tail
from search.sensitivity.scan import scan
from search.simulation.torch_simulator import TorchSimulator

from .test_hessian_trace import candidates_of, convolutional

KL = ModelLoss((OutputLoss("y", LossKind.SOFTMAX_KL),))
IMAGES = [{"x": np.random.default_rng(i).normal(size=(64, 2, 5, 5)).astype(np.float32)} for i in range(2)]


def test_affine_errors_of_channels_are_undone() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(20, 3, 4, 4, generator=generator)
    factor, offset = torch.tensor([0.5, 1.5, 1.0]), torch.tensor([1.0, 0.0, -2.0])
    moved = exact * factor.view(1, 3, 1, 1) + offset.view(1, 3, 1, 1)
    torch.testing.assert_close(to_exact(exact, 1)(moved), exact, atol=1e-5, rtol=1e-5)
    assert torch.equal(to_exact(exact, 1)(exact), exact)


def test_the_fit_is_least_squares_and_never_turns_a_channel_around() -> None:
    generator = torch.Generator().manual_seed(1)
    exact = torch.randn(500, 2, generator=generator)
    noisy = exact + 0.5 * torch.randn(500, 2, generator=generator)
    fitted = to_exact(exact, -1)(noisy)
    for channel in range(2):
        design = np.stack([noisy[:, channel].numpy(), np.ones(500)], axis=1)
        best = design @ np.linalg.lstsq(design, exact[:, channel].numpy(), rcond=None)[0]
        np.testing.assert_allclose(fitted[:, channel].numpy(), best, atol=1e-4)
    turned = to_exact(exact, -1)(-exact)
    assert torch.corrcoef(torch.stack([turned[:, 0], exact[:, 0]]))[0, 1] < -0.99
    constant = to_exact(exact, -1)(torch.full((500, 2), 7.0))
    torch.testing.assert_close(constant, exact.mean(0).expand(500, 2), atol=1e-5, rtol=0)


def test_full_precision_is_reproduced() -> None:
    simulator = TorchSimulator(convolutional())
    (found,) = perturb_refitted(simulator, IMAGES[0], [Assembly({}, {})])
    np.testing.assert_array_equal(found["y"], simulator.run(IMAGES[0])["y"])


def test_a_channel_scale_is_invisible_behind_a_later_layer_that_refits_it() -> None:
    """One factor on all channels of the last convolution scales what the head reads; the head's refit undoes it."""
    graph = convolutional()
    simulator, second = TorchSimulator(graph), graph.layers[1]
    candidate = candidates_of(graph).candidates[second.name, "w8a16"]
    scaled = replace(candidate, weight=replace(candidate.weight, scale=candidate.weight.scale * np.float32(1.3)))
    reference = simulator.run(IMAGES[0])
    plain = simulator.run(IMAGES[0], Assembly({second.name: scaled}, {}))
    (refitted,) = perturb_refitted(simulator, IMAGES[0], [Assembly({second.name: scaled}, {})])
    (rounding,) = perturb_refitted(simulator, IMAGES[0], [Assembly({second.name: candidate}, {})])
    loss = KL.per_sample(reference, refitted).mean()
    assert loss < 0.01 * KL.per_sample(reference, plain).mean()
    assert loss == pytest.approx(KL.per_sample(reference, rounding).mean(), rel=0.05)


def test_refitted_scan_predicts_what_the_sequential_refit_leaves() -> None:
    graph = convolutional()
    simulator, groups, candidates = TorchSimulator(graph), group_layers(graph), candidates_of(graph, (8, 2))
    refitted = scan(simulator, groups, candidates, KL, IMAGES)["kl"]
    plain = scan(simulator, groups, candidates, KL, IMAGES, refit=False)["kl"]
    assert refitted.notes == () == plain.notes
    first = graph.layers[0].name
    chosen = {(layer.name, "w2a16" if layer.name == first else "w8a16"): layer.name for layer in graph.layers}
    assembly = Assembly({name: candidates.candidates[key] for key, name in chosen.items()}, {})
    built = refit_sequentially(simulator, assembly, IMAGES)
    # The first layer's own refit comes on top, so the scan is compared with the candidate refitted on exact inputs.
    finished = CandidateSet({**candidates.candidates, (first, "w2a16"): built.candidates[first]}, {})
    found = scan(simulator, groups, finished, KL, IMAGES)["kl"].increases[first, "w2a16"].value
    unaware = scan(simulator, groups, finished, KL, IMAGES, refit=False)["kl"].increases[first, "w2a16"].value
    truth = np.concatenate([KL.per_sample(simulator.run(c), simulator.run(c, built)) for c in IMAGES]).mean()
    assert found == pytest.approx(truth, rel=0.1)
    assert abs(found - truth) < abs(unaware - truth)


def test_where_it_cannot_refit_the_scan_says_so(toy: Callable) -> None:
    graph = convolutional()
    simulator = TorchSimulator(graph)
    assert can_refit(simulator, IMAGES)
    assert not can_refit(simulator, [{"x": IMAGES[0]["x"][:31]}])
    assert not can_refit(TorchSimulator(convolutional(batch=64)), IMAGES)
    assert len(refitted_outputs(graph)) == 3
    model = toy()
    assert not can_refit(model.simulator, model.chunks(50))
    notes = scan(model.simulator, model.groups, model.candidates, KL, model.chunks(50))["gauss_newton"].notes
    assert any("without refitting" in note for note in notes)


def test_a_short_last_chunk_joins_the_one_before() -> None:
    x = np.arange(150, dtype=np.float32)
    chunks = with_whole_tail([{"x": x[:64]}, {"x": x[64:128]}, {"x": x[128:]}])
    assert [len(chunk["x"]) for chunk in chunks] == [64, 86]
    np.testing.assert_array_equal(np.concatenate([chunk["x"] for chunk in chunks]), x)
    assert [len(chunk["x"]) for chunk in with_whole_tail([{"x": x[:64]}, {"x": x[64:128]}])] == [64, 64]
    assert len(with_whole_tail([{"x": x[:5]}])) == 1
    graph = convolutional()
    images = np.concatenate([chunk["x"] for chunk in IMAGES])
    short = [{"x": images[:100]}, {"x": images[100:]}]
    found = scan(TorchSimulator(graph), group_layers(graph), candidates_of(graph, (4,)), KL, short)
    assert found["kl"].notes == ()
    assert {increase.samples for increase in found["kl"].increases.values()} == {128}
