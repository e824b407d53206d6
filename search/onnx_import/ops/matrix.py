"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from search.onnx_import.ops.table import Call, aligned, op


@op("MatMul")
def matmul(call: Call) -> Tensor:
    return torch.matmul(*aligned(call[0], call[1]))


@op("Gemm")
def gemm(call: Call) -> Tensor:
    a, b = aligned(call[0], call[1])
    a = a.reshape(a.shape[0], -1) if a.ndim > 2 else a  # before opset 7 the first operand may be flattened
    a = a.t() if call.attribute("transA", 0) else a
    b = b.t() if call.attribute("transB", 0) else b
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    product = torch.matmul(a, b)
    if alpha != 1:
        product = (product * alpha).to(product.dtype)
    c = call.optional(2)
    if c is None:
        return product
    c = aligned(c, product)[0]
    return product + (c if beta == 1 else (c * beta).to(product.dtype))


@op("Einsum")
def einsum(call: Call) -> Tensor:
    product: Tensor = torch.einsum(call.attribute("equation").replace(" ", ""), *call.present())
    return product


@op("Det")
def determinant(call: Call) -> Tensor:
    value: Tensor = torch.linalg.det(call[0])
    return value
