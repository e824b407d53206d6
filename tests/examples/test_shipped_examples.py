"""The shipped models and data are what their page says: small, clean, split by original, accurate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from examples.digits import CANVAS, GREY_LEVELS, augment, held_out_samples, split_originals

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = [EXAMPLES / "models" / f"digits_{name}.onnx" for name in ("resnet", "vit")]
DATA = EXAMPLES / "data" / "digits.npz"


def test_no_original_is_on_both_sides() -> None:
    train, test = split_originals()
    assert len(train) + len(test) == 1797
    assert not set(train.ids.tolist()) & set(test.ids.tolist())
    with np.load(DATA) as data:
        assert set(data["groups"].tolist()) == set(test.ids.tolist())


def test_the_data_file_is_what_its_script_makes() -> None:
    images, labels, groups = held_out_samples()
    with np.load(DATA) as data:
        assert set(data.files) == {"image", "labels", "groups"}
        assert data["image"].dtype == np.float32
        assert data["image"].shape == (len(labels), 1, CANVAS, CANVAS)
        assert len(labels) >= 640
        # resampling differs by a rounding between processors: at most one grey level, in few pixels
        off = np.abs(data["image"] - images.numpy()) * GREY_LEVELS
        assert off.max() < 1.5
        assert (off > 0.5).mean() < 1e-3
        np.testing.assert_array_equal(data["labels"], labels.numpy())
        np.testing.assert_array_equal(data["groups"], groups.numpy())


def test_everything_together_is_small() -> None:
    assert sum(path.stat().st_size for path in [*MODELS, DATA]) <= 6_000_000


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_model_is_clean_accurate_and_has_enough_layers(path: Path) -> None:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    constants = {tensor.name for tensor in model.graph.initializer}
    weighted = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and n.input[1] in constants]
    assert len(weighted) >= 20
    assert not model.metadata_props
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)
    assert all(not tensor.external_data for tensor in model.graph.initializer)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    with np.load(DATA) as data:
        correct = 0
        for images, labels in zip(np.array_split(data["image"], 11), np.array_split(data["labels"], 11), strict=True):
            correct += int((session.run(None, {"image": images})[0].argmax(1) == labels).sum())
        assert correct / len(data["labels"]) > 0.95


def test_augmentation_of_no_strength_is_the_enlarged_original() -> None:
    _, test = split_originals()
    first, second = (augment(test.images[:4], torch.Generator().manual_seed(seed), strength=0.0) for seed in (0, 1))
    torch.testing.assert_close(first, second)
    assert first.shape == (4, 1, CANVAS, CANVAS)
    assert torch.equal(first, torch.round(first * GREY_LEVELS) / GREY_LEVELS)
