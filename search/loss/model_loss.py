"""Losses: how far a changed model's outputs are from the full-precision ones, per sample and per kind of output.

Every kind is 0 and flat at the full-precision outputs y, so its second-order term is all there is: for a change z,
loss ≈ ½ Σ_k a_k² with a *factor* a(z) that is linear in z. The four kinds, per sample:

| kind         | loss                                   | factor a(z)                                |
|--------------|----------------------------------------|--------------------------------------------|
| `softmax_kl` | KL(softmax y ‖ softmax ŷ), per position | √p · (z − Σ p z), over √positions          |
| `sigmoid_kl` | Σ Bernoulli KL(σ(y) ‖ σ(ŷ))            | √(p(1−p)) · z                              |
| `mse`        | mean (ŷ − y)² / Var(y)                  | √2 · z / √(Var(y) · elements)              |
| `cosine`     | 1 − cos(y, ŷ), per position             | (z − (z·y/‖y‖²) y) / ‖y‖, over √positions  |

Losses are float64: at 8 bits a KL is ~1e-7, below what float32 differences resolve.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np
import torch

from search.simulation.simulator import Arrays

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, torch.Tensor]

EXACT_WIDTH = 1024
SKETCH_WIDTH = 256
_TINY = 1e-300
_LOG_FLOOR = -80.0
_BLOCK_ELEMENTS = 1 << 23


class LossKind(str, Enum):
    """What one output means. For logits y = (0, ln 3) and ŷ = (0, 0): `softmax_kl` 0.131, `sigmoid_kl` 0.131,
    `mse` (variance 0.302) 2.0, and for ŷ = (1, 1) `cosine` 0.293. `ignore` leaves the output out."""

    SOFTMAX_KL = "softmax_kl"
    SIGMOID_KL = "sigmoid_kl"
    MSE = "mse"
    COSINE = "cosine"
    IGNORE = "ignore"


@dataclass(frozen=True)
class OutputLoss:
    """How one graph output is scored.

    `class_axis` is the axis of classes or features (axis 0 counts samples); every other axis holds positions (tokens,
    pixels), whose losses are averaged. With `mask`, the name of a graph input, only positions where it is not 0
    count; it has the output's shape without the class axis. `probabilities` says the graph already applied softmax
    or sigmoid. `variance` scales `mse` and `norm` divides the loss (its uniform-w8a8 value when there are several).
    """

    output: str
    kind: LossKind
    class_axis: int = -1
    probabilities: bool = False
    mask: str | None = None
    variance: float = 1.0
    norm: float = 1.0


@dataclass(frozen=True)
class ModelLoss:
    """The loss of a whole model: the sum of its outputs' losses. `unit` is what sensitivities are counted in."""

    outputs: tuple[OutputLoss, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def unit(self) -> str:
        kinds = {loss.kind for loss in self.outputs}
        if len(self.outputs) > 1:
            return "uniform-w8a8 losses" if any(loss.norm != 1.0 for loss in self.outputs) else "summed losses"
        return "nats" if kinds <= {LossKind.SOFTMAX_KL, LossKind.SIGMOID_KL} else next(iter(kinds)).value

    def per_output(self, reference: Arrays, outputs: Arrays, inputs: Arrays | None = None) -> dict[str, Array]:
        """Float64 loss per sample of each output, before `norm`."""
        found: dict[str, list[Array]] = {loss.output: [] for loss in self.outputs}
        with torch.no_grad():
            for block in _blocks(self, reference, outputs, inputs or {}):
                for loss in self.outputs:
                    found[loss.output].append(_per_sample(loss, *block).numpy())
        return {name: np.concatenate(parts).astype(np.float64) for name, parts in found.items()}

    def per_sample(self, reference: Arrays, outputs: Arrays, inputs: Arrays | None = None) -> Array:
        """Float64 loss of each sample, shape (n,). `inputs` is needed only where a mask is declared."""
        losses = self.per_output(reference, outputs, inputs)
        return np.asarray(sum(losses[loss.output] / loss.norm for loss in self.outputs), dtype=np.float64)

    def per_sample_torch(self, reference: Tensors, outputs: Tensors, inputs: Tensors | None = None) -> torch.Tensor:
        """`per_sample` in float64 torch, differentiable (twice) in `outputs`."""
        return torch.stack(
            [_per_sample(loss, reference, outputs, inputs or {}) / loss.norm for loss in self.outputs]
        ).sum(0)

    def factor_torch(self, reference: Tensors, outputs: Tensors, inputs: Tensors | None = None) -> torch.Tensor:
        """Gauss–Newton factor rows a of the change outputs − reference, shape (n, K), float64, linear in `outputs`.

        ½ Σ_k a_ik² is the loss of sample i to second order, and Σ_k ‖∂a_ik/∂w‖² the trace of its Gauss–Newton
        matrix in w, the Fisher trace for the KL kinds.
        """
        rows = [_factor(loss, reference, outputs, inputs or {}) / math.sqrt(loss.norm) for loss in self.outputs]
        return torch.cat([row.reshape(len(row), -1) for row in rows], dim=1)

    def fisher_probe(
        self, reference: Tensors, generator: torch.Generator, inputs: Tensors | None = None
    ) -> torch.Tensor:
        """Random s (n, K) with E[s sᵀ] acting as identity on factors: s·a is the change of −log-likelihood of a draw.

        Labels are drawn from the model itself (softmax and sigmoid kinds), so E‖∂(s·a)/∂w‖² is the Fisher trace;
        `mse` and `cosine`, which have no likelihood, get random signs.
        """
        parts = [_probe(loss, reference, generator) for loss in self.outputs]
        return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)

    def factor(
        self, reference: Arrays, outputs: Arrays, inputs: Arrays | None = None, *, sketch_seed: int = 0
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """`factor_torch` for arrays; rows wider than 1024 are sketched to 256 entries with the same inner products.

        The sketch gives entries random signs and adds up every 256th: unbiased, relative error of one sample's norm
        about √(2/256). Rows are comparable only under the same `sketch_seed`; give every chunk its own, so that
        errors average out over chunks.
        """
        found = []
        with torch.no_grad():
            for block in _blocks(self, reference, outputs, inputs or {}):
                rows = self.factor_torch(*block).numpy()
                found.append(_sketch(rows, sketch_seed) if rows.shape[1] > EXACT_WIDTH else rows)
        return np.asarray(np.concatenate(found), dtype=np.float64)

    def normalised(self, uniform: Mapping[str, float]) -> ModelLoss:
        """This loss with each output divided by its value in `uniform` (mean loss at uniform w8a8) unless that is 0."""
        return replace(self, outputs=tuple(replace(loss, norm=uniform[loss.output] or 1.0) for loss in self.outputs))

    def to_json(self) -> dict[str, Any]:
        return {
            "outputs": [{**vars(loss), "kind": loss.kind.value} for loss in self.outputs],
            "unit": self.unit,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelLoss:
        return cls(
            tuple(OutputLoss(**{**loss, "kind": LossKind(loss["kind"])}) for loss in data["outputs"]),
            tuple(data["notes"]),
        )


def _blocks(loss: ModelLoss, *each: Arrays) -> Iterator[list[dict[str, torch.Tensor]]]:
    """The arrays the loss reads, a few samples at a time: float64 copies of a language model's logits are large."""
    names = {one.output for one in loss.outputs} | {one.mask for one in loss.outputs}
    found = [{name: np.asarray(array) for name, array in arrays.items() if name in names} for arrays in each]
    outputs = [found[0][one.output] for one in loss.outputs]
    samples = len(outputs[0])
    step = max(1, _BLOCK_ELEMENTS * samples // max(1, sum(array.size for array in outputs)))
    for start in range(0, samples, step):
        yield [{name: torch.tensor(a[start : start + step]) for name, a in arrays.items()} for arrays in found]


def _rows(loss: OutputLoss, values: torch.Tensor) -> torch.Tensor:
    """An output as float64 (n, positions, classes)."""
    values = values.double()
    if values.ndim == 1:
        return values.reshape(-1, 1, 1)
    moved = values.movedim(loss.class_axis, -1)
    return moved.reshape(moved.shape[0], -1, moved.shape[-1])


def _log_probabilities(loss: OutputLoss, values: torch.Tensor) -> torch.Tensor:
    rows = _rows(loss, values)
    if loss.probabilities:
        rows = rows.clamp_min(math.exp(_LOG_FLOOR)).log()
    return torch.log_softmax(rows, dim=-1)


def _logits(loss: OutputLoss, values: torch.Tensor) -> torch.Tensor:
    rows = _rows(loss, values)
    if loss.probabilities:
        floor = torch.finfo(torch.float32).eps / 2
        rows = torch.logit(rows, eps=floor)
    return rows


def _weights(loss: OutputLoss, rows: torch.Tensor, inputs: Tensors) -> torch.Tensor:
    """Share of each position in its sample's mean, (n, positions); a sample with everything masked weighs nothing."""
    samples, positions, _ = rows.shape
    if loss.mask is None:
        return torch.full((samples, positions), 1.0 / positions, dtype=torch.float64, device=rows.device)
    if loss.mask not in inputs:
        raise ValueError(f"the loss of {loss.output!r} needs the input {loss.mask!r}; pass inputs=")
    counted = (inputs[loss.mask].reshape(samples, -1) != 0).double()
    if counted.shape[1] != positions:
        raise ValueError(f"mask {loss.mask!r} has {counted.shape[1]} positions, output {loss.output!r} {positions}")
    return counted / counted.sum(dim=1, keepdim=True).clamp_min(1.0)


def _per_sample(loss: OutputLoss, reference: Tensors, outputs: Tensors, inputs: Tensors) -> torch.Tensor:
    before, after = reference[loss.output], outputs[loss.output]
    if loss.kind is LossKind.SOFTMAX_KL:
        log_p, log_q = _log_probabilities(loss, before), _log_probabilities(loss, after)
        each = (log_p.exp() * (log_p - log_q)).sum(-1)
    elif loss.kind is LossKind.SIGMOID_KL:
        y, x = _logits(loss, before), _logits(loss, after)
        softplus = torch.nn.functional.softplus
        # KL(σ(y) ‖ σ(x)) = σ(y)(y − x) + softplus(x) − softplus(y), exact for logits of any size.
        each = (torch.sigmoid(y) * (y - x) + softplus(x) - softplus(y)).sum(-1)
    elif loss.kind is LossKind.MSE:
        each = (_rows(loss, after) - _rows(loss, before)).square().mean(-1) / loss.variance
    else:
        # ½‖ŷ/‖ŷ‖ − y/‖y‖‖² is 1 − cos without the cancellation.
        unit_before, unit_after = (torch.nn.functional.normalize(_rows(loss, y), dim=-1) for y in (before, after))
        each = 0.5 * (unit_after - unit_before).square().sum(-1)
    return (each * _weights(loss, _rows(loss, before), inputs)).sum(-1)


def _factor(loss: OutputLoss, reference: Tensors, outputs: Tensors, inputs: Tensors) -> torch.Tensor:
    before, after = reference[loss.output].detach(), outputs[loss.output]
    if loss.kind is LossKind.SOFTMAX_KL:
        log_p = _log_probabilities(loss, before)
        p = log_p.exp()
        z = _log_probabilities(loss, after) - log_p if loss.probabilities else _rows(loss, after) - _rows(loss, before)
        a = p.sqrt() * (z - (p * z).sum(-1, keepdim=True))
    elif loss.kind is LossKind.SIGMOID_KL:
        y, x = _logits(loss, before), _logits(loss, after)
        p = torch.sigmoid(y)
        a = (p * (1.0 - p)).sqrt() * (x - y)
    elif loss.kind is LossKind.MSE:
        z = _rows(loss, after) - _rows(loss, before)
        a = math.sqrt(2.0 / (loss.variance * z.shape[-1])) * z
    else:
        y = _rows(loss, before)
        z = _rows(loss, after) - y
        length = torch.linalg.vector_norm(y, dim=-1, keepdim=True).clamp_min(1e-30)
        direction = y / length
        a = (z - (z * direction).sum(-1, keepdim=True) * direction) / length
    return a * _weights(loss, _rows(loss, before), inputs).sqrt().unsqueeze(-1)


def _probe(loss: OutputLoss, reference: Tensors, generator: torch.Generator) -> torch.Tensor:
    before = reference[loss.output].detach()
    if loss.kind is LossKind.SOFTMAX_KL:
        p = _log_probabilities(loss, before).exp()
        label = torch.multinomial(p.reshape(-1, p.shape[-1]).cpu(), 1, generator=generator).reshape(*p.shape[:-1], 1)
        drawn = torch.zeros_like(p).scatter_(-1, label.to(p.device), 1.0)
        return drawn / p.clamp_min(_TINY).sqrt()
    if loss.kind is LossKind.SIGMOID_KL:
        p = torch.sigmoid(_logits(loss, before))
        drawn = torch.bernoulli(p.cpu(), generator=generator).to(p.device)
        return (drawn - p) / (p * (1.0 - p)).clamp_min(_TINY).sqrt()
    rows = _rows(loss, before)
    return (torch.randint(0, 2, rows.shape, generator=generator).double() * 2.0 - 1.0).to(rows.device)


def _sketch(rows: Array, seed: int) -> Array:
    """Rows under random signs, folded to `SKETCH_WIDTH` sums of entries that far apart."""
    signs = np.random.default_rng((seed, rows.shape[1])).integers(0, 2, rows.shape[1], dtype=np.int8) * 2 - 1
    signed = np.pad(rows * signs, ((0, 0), (0, -rows.shape[1] % SKETCH_WIDTH)))
    return np.asarray(signed.reshape(len(rows), -1, SKETCH_WIDTH).sum(axis=1))
