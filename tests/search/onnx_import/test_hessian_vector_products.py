"""Second derivatives through the program equal those of eager torch, for every layer's weight at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exported_models import export, make
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from search.graph import Graph, Layer
from search.onnx_import import Program, layer_weight, load_graph

RELATIVE = 1e-6  # exports round the attention scale and epsilons to float32


def loss_of(logits: Tensor) -> Tensor:
    """KL to a fixed distribution, so that gradient and Hessian are both non-zero."""
    shares = torch.softmax(logits.reshape(-1, logits.shape[-1]), -1)
    target = torch.linspace(1, 2, logits.shape[-1], dtype=logits.dtype).softmax(0)
    return (target * (target / shares).log()).sum(-1).mean()


def hessian_vector_products(
    loss: Callable[[dict[str, Tensor]], Tensor], weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    """H·v for one seeded direction over all weights."""
    torch.manual_seed(1)
    directions = {name: torch.randn_like(value) for name, value in sorted(weights.items())}
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    names = sorted(leaves)
    gradients = torch.autograd.grad(loss(leaves), [leaves[n] for n in names], create_graph=True)
    along = sum((g * directions[n]).sum() for g, n in zip(gradients, names, strict=True))
    assert isinstance(along, Tensor)
    return dict(zip(names, torch.autograd.grad(along, [leaves[n] for n in names]), strict=True))


def matching_layers(graph: Graph, model: torch.nn.Module) -> dict[str, tuple[Layer, bool]]:
    """Layers whose weight is the module's own (not scaled by a folded BatchNorm), and whether it is transposed."""
    found = {}
    for layer in graph.layers:
        parameter = dict(model.named_parameters()).get(f"{layer.name}.weight")
        value = torch.from_numpy(layer_weight(graph, layer))
        if parameter is not None and layer.tie is None:
            if value.shape == parameter.shape and torch.equal(value, parameter.data):
                found[layer.name] = (layer, False)
            elif value.ndim == 2 and value.shape == parameter.T.shape and torch.equal(value, parameter.data.T):
                found[layer.name] = (layer, True)
    return found


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize(("name", "least"), [("densenet", 3), ("bert", 12)])
def test_equal_eager_torch(name: str, least: int, dynamo: bool, tmp_path: Path) -> None:
    model, inputs = make(name)
    export(model, inputs, tmp_path / "model.onnx", dynamo=dynamo, opset=18)
    graph = load_graph(tmp_path / "model.onnx")
    layers = matching_layers(graph, model)
    assert len(layers) >= least
    program = Program(graph, dtype=torch.float64)
    weights = {layer: model.get_parameter(f"{layer}.weight").data.double() for layer in layers}
    feed = dict(zip((info.name for info in graph.inputs), inputs, strict=True))

    def through_program(values: dict[str, Tensor]) -> Tensor:
        reads = {
            (layer.node, layer.weight_position): values[key].T if transposed else values[key]
            for key, (layer, transposed) in layers.items()
        }
        return loss_of(program.run(feed, reads=reads)[graph.outputs[0].name])

    eager = model.double()
    doubled = tuple(value.double() if value.is_floating_point() else value for value in inputs)

    def through_eager(values: dict[str, Tensor]) -> Tensor:
        return loss_of(functional_call(eager, {f"{key}.weight": value for key, value in values.items()}, doubled))

    ours = hessian_vector_products(through_program, weights)
    with sdpa_kernel(SDPBackend.MATH):
        theirs = hessian_vector_products(through_eager, weights)
    for key in layers:
        scale = theirs[key].abs().max()
        assert scale > 0, key
        assert (ours[key] - theirs[key]).abs().max() <= RELATIVE * scale, key
