"""Fused attention of opset 23 and rotary embeddings, written out in plain arithmetic."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from search.onnx_import.ops.table import Call, aligned, op


def _heads(x: Tensor, count: int | None) -> Tensor:
    """(batch, sequence, heads·size) → (batch, heads, sequence, size); 4-D tensors are that already."""
    if x.ndim == 4:
        return x
    assert count is not None
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def _allowed(queries: int, keys: int, offset: Tensor, call: Call) -> Tensor | None:
    """Which keys each query may read under the causal and sliding-window attributes; None means all."""
    left, right = call.attribute("left_window_size", -1), call.attribute("right_window_size", -1)
    if not call.attribute("is_causal", 0) and left < 0 and right < 0:
        return None
    ahead = torch.arange(keys)[None, :] - torch.arange(queries)[:, None] - offset
    allowed = torch.ones_like(ahead, dtype=torch.bool)
    if call.attribute("is_causal", 0):
        allowed = allowed & (ahead <= 0)
    if left >= 0:
        allowed = allowed & (-ahead <= left)
    if right >= 0:
        allowed = allowed & (ahead <= right)
    return allowed


def _bias(call: Call, queries: int, keys: int, past: int, like: Tensor) -> Tensor:
    """Everything added to the logits: the mask input, causality, windows and padding, as 0 or −inf."""
    bias = torch.zeros(queries, keys, dtype=like.dtype, device=like.device)
    minus = torch.full((), -torch.inf, dtype=like.dtype, device=like.device)
    mask = call.optional(3)
    if mask is not None:
        mask = mask.to(like.device)
        short = keys - mask.shape[-1]
        if mask.dtype == torch.bool:
            mask = torch.where(mask, torch.zeros_like(minus), minus)
        bias = bias + (F.pad(mask, (0, short), value=-torch.inf) if short > 0 else mask)
    lengths = call.optional(6)
    offset = torch.tensor(past)
    if lengths is not None and call.optional(4) is None:
        offset = lengths.reshape(-1, 1, 1, 1).cpu() - queries
    allowed = _allowed(queries, keys, offset, call)
    if allowed is not None:
        bias = bias + torch.where(allowed.to(like.device), torch.zeros_like(minus), minus)
    if lengths is not None:
        valid = torch.arange(keys, device=like.device) < lengths.to(like.device).reshape(-1, 1, 1, 1)
        bias = bias + torch.where(valid, torch.zeros_like(minus), minus)
    return bias


@op("Attention")
def attention(call: Call) -> tuple[Tensor | None, ...]:
    query, key, value = aligned(call[0], call[1], call[2])
    flat = query.ndim == 3
    query = _heads(query, call.attribute("q_num_heads"))
    key = _heads(key, call.attribute("kv_num_heads"))
    value = _heads(value, call.attribute("kv_num_heads"))
    past_key, past_value = call.optional(4), call.optional(5)
    past = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    present_key, present_value = key, value
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    root = math.sqrt(call.attribute("scale", 1 / math.sqrt(query.shape[-1])))
    logits = torch.matmul(query * root, key.transpose(-1, -2) * root)
    stages: list[Tensor] = [logits]
    softcap = call.attribute("softcap", 0.0)
    if softcap > 0:
        logits = softcap * torch.tanh(logits / softcap)
    stages.append(logits)
    bias = _bias(call, query.shape[2], key.shape[2], past, query)
    logits = logits + bias
    stages.append(logits)
    # A query that may read nothing gets zeros, not the NaN that a softmax over −inf alone would give.
    blind = torch.isneginf(bias.amax(-1, keepdim=True))
    shares = torch.softmax(torch.where(blind, torch.zeros_like(logits), logits), -1)
    shares = torch.where(blind, torch.zeros_like(shares), shares)
    stages.append(shares)
    y = torch.matmul(shares, value)
    if flat:
        y = y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)
    shown = call.attribute("qk_matmul_output_mode", 0)
    return y, present_key, present_value, stages[shown]


@op("RotaryEmbedding")
def rotary_embedding(call: Call) -> Tensor:
    x, cosine, sine = aligned(call[0], call[1], call[2])
    shape = x.shape
    places = call.optional(3)
    heads = x.transpose(1, 2) if x.ndim == 4 else x.reshape(shape[0], shape[1], call.attribute("num_heads"), -1)
    width = call.attribute("rotary_embedding_dim", 0) or heads.shape[-1]
    rotated, rest = heads[..., :width], heads[..., width:]
    if places is not None:
        cosine, sine = cosine[places.to(cosine.device)], sine[places.to(sine.device)]
    cosine, sine = cosine.unsqueeze(2), sine.unsqueeze(2)
    if call.attribute("interleaved", 0):
        a, b = rotated[..., 0::2], rotated[..., 1::2]
        turned = torch.stack([a * cosine - b * sine, a * sine + b * cosine], -1).flatten(-2)
    else:
        a, b = rotated.chunk(2, -1)
        turned = torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1)
    y = torch.cat([turned, rest], -1)
    return y.transpose(1, 2) if x.ndim == 4 else y.reshape(shape)
