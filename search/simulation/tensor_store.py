"""Tensor store: intermediate tensors of a walk, kept in memory up to a limit and on disk beyond it."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor


class TensorStore:
    """A dictionary of tensors whose resident bytes stay below `limit_bytes`; what does not fit lies in a temporary
    folder until it is dropped. Use it as a context manager: leaving removes the folder.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._resident: dict[Hashable, Tensor] = {}
        self._files: dict[Hashable, Path] = {}
        self._bytes = 0
        self._written = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> TensorStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resident.clear()
        self._files.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __contains__(self, key: Hashable) -> bool:
        return key in self._resident or key in self._files

    def __getitem__(self, key: Hashable) -> Tensor:
        if key in self._resident:
            return self._resident[key]
        return torch.from_numpy(np.load(self._files[key], allow_pickle=False))

    def __setitem__(self, key: Hashable, tensor: Tensor) -> None:
        self.drop(key)
        size = tensor.numel() * tensor.element_size()
        if self._bytes + size <= self._limit:
            self._resident[key] = tensor
            self._bytes += size
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="bitwright-walk-")
        path = Path(self._folder.name) / f"{self._written}.npy"
        self._written += 1
        np.save(path, tensor.cpu().numpy(), allow_pickle=False)
        self._files[key] = path

    def drop(self, key: Hashable) -> None:
        """Forget a tensor; forgetting one that is not there is fine."""
        if (tensor := self._resident.pop(key, None)) is not None:
            self._bytes -= tensor.numel() * tensor.element_size()
        if (path := self._files.pop(key, None)) is not None:
            path.unlink()

    @property
    def spilled(self) -> int:
        """How many tensors lie on disk now."""
        return len(self._files)
