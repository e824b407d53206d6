"""Limits: how large a submitted model may be before it is refused."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """Upper bounds checked before anything of that size is allocated; exceeding one is `model_too_large`.

    `upload_bytes` counts the file and its external data together. `tensor_bytes` bounds one tensor, from shape
    inference, with unknown dimensions counted as 1.
    """

    upload_bytes: int = 2 * GIB
    nodes: int = 50_000
    initializers: int = 20_000
    parameters: int = 2_000_000_000
    tensor_bytes: int = 4 * GIB


DEFAULT_LIMITS = Limits()
EXPORT_RECIPE = (
    "export to ONNX: torch.onnx.export(model.eval(), example, 'model.onnx', dynamo=True, external_data=False, "
    "dynamic_shapes=...)"
)
