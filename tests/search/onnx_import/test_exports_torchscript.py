"""Exports of the TorchScript exporter, at the oldest and a later opset: layers are found and outputs are equal."""

from __future__ import annotations

from pathlib import Path

import pytest
from export_checks import check_export
from exported_models import MODELS


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_equal_onnx_runtime(name: str, opset: int, tmp_path: Path) -> None:
    check_export(name, tmp_path / "model.onnx", dynamo=False, opset=opset)
