"""The scan: identities of its Gram matrix, shards, resumption, and what it says when data is short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from search.errors import BadSubmission
from search.loss.inference import LossKind, ModelLoss, OutputLoss
from search.sensitivity.scan import scan, scan_keys, scan_rows
from search.sensitivity.scan_rows import RowFolder, ScanRows, cross_layer_share, merge

KL = ModelLoss((OutputLoss("y", LossKind.SOFTMAX_KL),))
MSE = ModelLoss((OutputLoss("y", LossKind.MSE, variance=3.0),))


def rows_of(toy, loss: ModelLoss = KL, **options: object) -> ScanRows:  # type: ignore[no-untyped-def]
    return scan_rows(toy.simulator, toy.groups, toy.candidates, loss, toy.chunks(50), **options)


def test_kl_is_the_mean_measured_loss_with_its_error(toy: Callable) -> None:
    model = toy()
    found = scan(model.simulator, model.groups, model.candidates, KL, model.chunks(50))
    assert list(found["kl"].increases) == scan_keys(model.groups, model.candidates)
    reference = model.simulator.run({"x": model.inputs})
    weight = model.simulator.weights["l2"]
    change = model.inputs @ (model.candidates.candidates["l2", "w3a16"].weight.dequantize() - weight)
    losses = KL.per_sample(reference, {"y": reference["y"] + change})
    increase = found["kl"].increases["l2", "w3a16"]
    assert increase.value == pytest.approx(losses.mean(), rel=1e-4)
    assert increase.standard_error == pytest.approx(losses.std(ddof=1) / np.sqrt(len(losses)), rel=1e-4)
    assert increase.samples == 160
    assert found["gauss_newton"].increases == found["kl"].increases
    assert (found["kl"].unit, found["kl"].interactions) == ("nats", None)


def test_gram_is_symmetric_psd_and_close_to_kl_at_eight_bits(toy: Callable) -> None:
    found = rows_of(toy(layers=6)).sensitivities()["gauss_newton"]
    assert found.interactions is not None
    gram = found.interactions.matrix
    assert gram.dtype == np.float64
    np.testing.assert_array_equal(gram, gram.T)
    assert np.linalg.eigvalsh(gram / gram.max()).min() > -1e-8
    assert found.interactions.shrink == 0.5
    for index, key in enumerate(found.interactions.keys):
        if key[1] == "w8a16":
            assert gram[index, index] == pytest.approx(found.increases[key].value, rel=0.02)


def test_gauss_newton_is_exact_for_a_quadratic_loss_of_a_linear_model(toy: Callable) -> None:
    model = toy()
    found = rows_of(model, MSE).sensitivities()["gauss_newton"]
    assert found.interactions is not None
    index = {key: i for i, key in enumerate(found.interactions.keys)}
    choice = {"l0": "w3a16", "l1": "w4a16", "l2": "w3a16", "l3": "w8a16"}
    at = [index[key] for key in choice.items()]
    predicted = found.interactions.matrix[np.ix_(at, at)].sum()
    reference = model.simulator.run({"x": model.inputs})
    change = sum(
        model.inputs @ (model.candidates.candidates[key].weight.dequantize() - model.simulator.weights[key[0]])
        for key in choice.items()
    )
    truth = MSE.per_sample(reference, {"y": reference["y"] + change}).mean()
    assert predicted == pytest.approx(truth, rel=1e-4)
    single = sum(found.increases[key].value for key in choice.items())
    assert cross_layer_share(found, choice) == pytest.approx(
        0.5 * (predicted - single) / (single + 0.5 * (predicted - single)), rel=1e-3
    )


def test_below_128_samples_interactions_are_dropped_and_said(toy: Callable) -> None:
    found = rows_of(toy(samples=127)).sensitivities()["gauss_newton"]
    assert found.interactions is None
    assert any("127" in note for note in found.notes)
    assert rows_of(toy(samples=128)).sensitivities()["gauss_newton"].interactions is not None


def test_shards_merge_to_the_whole(toy: Callable, tmp_path: Path) -> None:
    whole = rows_of(toy(layers=5)).sensitivities()["gauss_newton"]
    parts = [rows_of(toy(layers=5), shard=(i, 3), folder=tmp_path / str(i)) for i in (2, 0, 1)]
    from_memory = merge(parts).sensitivities()["gauss_newton"]
    from_disk = merge(ScanRows(tuple(RowFolder(tmp_path / str(i)).rows()), "nats") for i in range(3)).sensitivities()[
        "gauss_newton"
    ]
    for found in (from_memory, from_disk):
        assert found.increases == whole.increases
        assert list(found.increases) == list(whole.increases)
        assert found.interactions.keys == whole.interactions.keys
        np.testing.assert_array_equal(found.interactions.matrix, whole.interactions.matrix)
    with pytest.raises(ValueError, match="overlap"):
        merge([parts[0], parts[0]])


def test_a_stopped_scan_computes_nothing_twice(toy: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.sensitivity.scan._BLOCK_KEYS", 4)
    model = toy()
    chunks = len(model.chunks(50))
    model.simulator.fail_after = 6 * chunks
    with pytest.raises(KeyboardInterrupt):
        rows_of(model, folder=tmp_path)
    kept = {row.key for row in RowFolder(tmp_path).rows()}
    assert len(kept) == 4
    again = toy()
    resumed = rows_of(again, folder=tmp_path)
    recomputed = {built for built in again.simulator.built}
    assert len(again.simulator.built) == 8 * chunks
    assert not recomputed & {(key,) for key in kept}
    whole = rows_of(toy()).sensitivities()["gauss_newton"]
    np.testing.assert_array_equal(
        resumed.sensitivities()["gauss_newton"].interactions.matrix, whole.interactions.matrix
    )
    last = toy()
    rows_of(last, folder=tmp_path)
    assert last.simulator.built == []


def test_rows_of_other_data_loss_or_damage_are_not_reused(toy: Callable, tmp_path: Path) -> None:
    rows_of(toy(), MSE, folder=tmp_path)
    model = toy()
    rows_of(model, folder=tmp_path)
    assert len(model.simulator.built) == 12 * len(model.chunks(50))
    other = toy()
    other.inputs[0, 0] += 1
    rows = rows_of(other, folder=tmp_path).rows
    assert len(other.simulator.built) == 12 * len(other.chunks(50))
    victim = RowFolder(tmp_path).path(next(row.fingerprint for row in rows if row.key == ("l0", "w4a16")))
    victim.write_bytes(victim.read_bytes()[:100])
    damaged = toy()
    damaged.inputs[0, 0] += 1
    rows_of(damaged, folder=tmp_path)
    assert set(damaged.simulator.built) == {(("l0", "w4a16"),)}


def test_tied_layers_are_measured_together(toy: Callable) -> None:
    model = toy(tie=True)
    found = rows_of(model).sensitivities()["kl"]
    assert [key[0] for key in found.increases if key[1] == "w4a16"] == ["l0", "l2", "l3"]
    assert (("l0", "w4a16"), ("l1", "w4a16")) in model.simulator.built


def test_resampling_is_seeded_and_spreads_like_the_standard_error(toy: Callable) -> None:
    rows = rows_of(toy())
    key = ("l1", "w3a16")
    draws = [rows.resample(seed)["kl"].increases[key].value for seed in range(200)]
    assert rows.resample(7)["kl"].increases == rows.resample(7)["kl"].increases
    error = rows.sensitivities()["kl"].increases[key].standard_error
    assert np.std(draws) == pytest.approx(error, rel=0.25)
    gram = rows.resample(3)["gauss_newton"].interactions.matrix
    assert np.linalg.eigvalsh(gram / gram.max()).min() > -1e-8


def test_progress_counts_rows(toy: Callable) -> None:
    seen: list[tuple[int, int]] = []
    rows_of(toy(), progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 12)
    assert seen[-1] == (12, 12)


def test_candidates_that_break_the_model_are_left_out_by_name(toy: Callable) -> None:
    model = toy()
    model.candidates.candidates["l1", "w3a16"].weight.scale[0] = np.inf
    with np.errstate(invalid="ignore"):
        found = rows_of(model).sensitivities()
    assert ("l1", "w3a16") not in found["kl"].increases
    assert any("'l1' at w3a16" in note for note in found["gauss_newton"].notes)
    assert np.isfinite(found["gauss_newton"].interactions.matrix).all()


def test_a_model_that_is_not_finite_is_refused(toy: Callable) -> None:
    model = toy()
    model.simulator.gain = np.inf
    with np.errstate(invalid="ignore"), pytest.raises(BadSubmission) as caught:
        rows_of(model)
    assert caught.value.code == "model_output_nonfinite"
