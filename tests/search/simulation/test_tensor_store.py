"""Tensor store: a dictionary whose memory is bounded and whose disk use ends with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from search.simulation.tensor_store import TensorStore


def test_spills_beyond_the_limit_and_gives_back_equal_tensors():
    tensors = {("x", index): torch.randn(100) for index in range(5)}
    with TensorStore(limit_bytes=1000) as store:
        for key, tensor in tensors.items():
            store[key] = tensor
        assert store.spilled == 3
        assert all((store[key] == tensor).all() for key, tensor in tensors.items())
        store.drop(("x", 0))
        store.drop(("x", 4))
        assert ("x", 0) not in store
        assert store.spilled == 2
        with pytest.raises(KeyError):
            store["x", 0]


def test_replacing_frees_and_leaving_removes_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with TensorStore(limit_bytes=400) as store:
        for _ in range(3):
            store["x"] = torch.ones(100)
        assert store.spilled == 0
        store["y"] = torch.zeros(100, dtype=torch.int64)
        assert store["y"].dtype == torch.int64
        assert len(list(Path(tmp_path).iterdir())) == 1
    assert not list(Path(tmp_path).iterdir())
