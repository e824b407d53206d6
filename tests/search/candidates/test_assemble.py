"""Assemble: which tensors get a quantizer, who sees it, and what is refused."""

from __future__ import annotations

import pytest
from small_models import images, recipes_for, small_cnn

from search.candidates.assemble import assemble
from search.candidates.finish import finish_candidates
from search.errors import BadSubmission
from search.simulation.torch_simulator import TorchSimulator


@pytest.fixture(scope="module")
def finished():
    graph = small_cnn()
    return graph, finish_candidates(TorchSimulator(graph), recipes_for(graph), [images(16)])


def test_quantized_convolutions_quantize_what_they_read_and_what_they_write(finished):
    graph, candidates = finished
    assembly = assemble(graph, {"stem": "w8a8", "pointwise": "w4a8", "fc": "w8a8", "block2": "fp32"}, candidates)
    assert set(assembly.candidates) == {"stem", "pointwise", "fc"}
    # behind the absorbed Relu; on the convolution itself before SiLU; a Gemm's result stays float
    assert assembly.output_quantized == {"stem_relu", "pointwise"}
    assert set(assembly.quantizers) == {"image", "stem_relu", "depthwise_clip", "pointwise", "features"}
    assert assembly.precision_of("block1") == "fp32"


def test_dynamic_precisions_need_no_quantizer(finished):
    graph, candidates = finished
    assembly = assemble(graph, {"fc": "w8a8-dynamic"}, candidates)
    assert not assembly.quantizers
    assert not assembly.output_quantized


@pytest.mark.parametrize(
    "precisions, code", [({"nowhere": "w8a8"}, "layer_unknown"), ({"stem": "w3a8"}, "candidate_missing")]
)
def test_refuses_what_does_not_exist(finished, precisions, code):
    graph, candidates = finished
    with pytest.raises(BadSubmission) as refused:
        assemble(graph, precisions, candidates)
    assert refused.value.code == code
    assert refused.value.hint
