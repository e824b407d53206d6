"""Exports of the dynamo exporter, transformers: layers are found and outputs are equal."""

from __future__ import annotations

from pathlib import Path

import pytest
from export_checks import check_export
from exported_models import TRANSFORMERS


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_outputs_equal_onnx_runtime(name: str, tmp_path: Path) -> None:
    check_export(name, tmp_path / "model.onnx", dynamo=True, opset=18 if len(name) % 2 else 21)
