"""From a torch module to one ONNX file on the user's machine. torch is imported only when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ONE_FILE_LIMIT_BYTES = 1_500_000_000


def convert(
    module: Any, example: Any, path: str | Path = "model.onnx", *, batch_dim: str = "batch", opset: int = 20
) -> Path:
    """Export a `torch.nn.Module` with a dynamic batch to ONNX and return the file's path.

    `example` is one input tensor or a tuple of them, batch first. Weights up to 1.5 GB stay inside the file;
    larger ones land beside it as external data, to be sent along. Raises torch's own error for a model that
    fixes its batch, for example by a reshape to the example's sizes.
    """
    import torch

    arguments = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    path = Path(path)
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    was_training = module.training
    module.eval()
    try:
        batch = torch.export.Dim(batch_dim)
        torch.onnx.export(
            module,
            arguments,
            path,
            opset_version=opset,
            dynamo=True,
            external_data=weight_bytes > ONE_FILE_LIMIT_BYTES,
            dynamic_shapes=tuple({0: batch} for _ in arguments),
            verbose=False,
        )
    finally:
        module.train(was_training)
    return path
