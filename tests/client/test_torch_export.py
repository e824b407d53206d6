"""`convert` writes one ONNX file with a dynamic batch that ONNX Runtime agrees with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import bitwright


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_module_becomes_one_file_with_a_dynamic_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).train()
    path = bitwright.convert(module, torch.randn(2, 1, 8, 8), tmp_path / "net.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert module.training, "the module is left as it was"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (argument,) = session.get_inputs()
    module.eval()
    for batch in (1, 5):
        sample = torch.randn(batch, 1, 8, 8)
        expected = module(sample).detach().numpy()
        np.testing.assert_allclose(session.run(None, {argument.name: sample.numpy()})[0], expected, atol=1e-5)
