"""Models as torch's two exporters write them: all fuses, computes what is simulated, weighs what is counted."""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import onnx
import pytest
import torch
from quantized_models import assemble, cosine, read, sample_inputs, uniform
from torch import Tensor, nn

from search.artifact.audit import audit_model
from search.artifact.byte_count import counted_bytes
from search.artifact.qdq import export_assembly
from search.artifact.session import open_model
from search.simulation.onnxruntime_simulator import OnnxRuntimeSimulator


class ConvNet(nn.Module):
    """Stem, residual block with BatchNorm and a strided shortcut, depthwise with ReLU6, SiLU, Hardswish, head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16)
        self.conv1, self.norm1 = nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.norm2 = nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32)
        self.shortcut = nn.Conv2d(16, 32, 1, 2)
        self.depthwise = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.wide, self.last, self.head = nn.Conv2d(32, 96, 1), nn.Conv2d(96, 96, 1), nn.Linear(96, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.norm(self.stem(image))), 2)
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        x = torch.relu(y + self.shortcut(x))
        x = nn.functional.silu(self.wide(nn.functional.relu6(self.depthwise(x))))
        return self.head(nn.functional.hardswish(self.last(x)).mean((2, 3)))


class Encoder(nn.Module):
    """Embedding, one transformer encoder layer, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 64)
        self.layer = nn.TransformerEncoderLayer(64, 4, 160, batch_first=True, activation="gelu", dropout=0.0)
        self.head = nn.Linear(64, 40, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(tokens)))


def exported(kind: str, opset: int, dynamo: bool) -> onnx.ModelProto:
    torch.manual_seed(0)
    module: nn.Module = ConvNet() if kind == "conv" else Encoder()
    example = torch.randn(4, 3, 24, 24) if kind == "conv" else torch.randint(0, 40, (4, 6))
    module.eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    with warnings.catch_warnings():
        # The exporters warn of their own deprecated parts.
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            if dynamo:
                program = torch.onnx.export(module, (example,), dynamo=True, opset_version=opset, verbose=False)
                assert program is not None
                return program.model_proto
            buffer = io.BytesIO()
            torch.onnx.export(module, (example,), buffer, dynamo=False, opset_version=opset)
        finally:
            logging.disable(logging.NOTSET)
    return onnx.load_model_from_string(buffer.getvalue())


# Precisions by kind, and the share of layers that get them; the others stay in float.
CHOICES = [
    ({"conv": "w4a8", "linear": "w4a8"}, 1.0),
    ({}, 0.5),
    ({"linear": "w8a8-dynamic"}, 0.5),
    ({"linear": "w4a16-g32"}, 1.0),
]


@pytest.mark.parametrize(
    "kind, opset, dynamo", [("conv", 14, False), ("conv", 20, True), ("encoder", 17, False), ("encoder", 18, True)]
)
def test_every_form_survives_both_exporters(kind: str, opset: int, dynamo: bool) -> None:
    graph = read(exported(kind, opset, dynamo))
    inputs = sample_inputs(graph, 4)
    random = np.random.default_rng(1)
    output = graph.outputs[0].name
    simulator = OnnxRuntimeSimulator(graph)
    for choice, share in CHOICES:
        decided = {layer: p if random.random() < share else "fp32" for layer, p in uniform(graph, **choice).items()}
        assembly = assemble(graph, decided, inputs)
        model = export_assembly(graph, assembly, "onnxruntime_cpu")
        onnx.checker.check_model(model, full_check=True)
        content = model.SerializeToString()
        audit = audit_model(content, 1, None, decided, graph)
        assert audit.ok, audit.findings
        assert all(layer.executed for layer in audit.layers)
        loaded = open_model(content, "onnxruntime_cpu", 1)
        assert cosine(loaded.run(inputs)[output], simulator.run(inputs, assembly)[output]) > 0.999
        loaded.close()
        # These models are so small that a quantizer pair between a float and an integer layer is 0.4 % of them.
        assert counted_bytes(graph, assembly).total == pytest.approx(len(content), rel=0.02)
