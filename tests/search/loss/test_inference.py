"""Losses against closed forms, their second-order factors, and what is inferred from a graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from scipy.special import expit, log_softmax, softmax
from small_models import Builder

from search.errors import BadSubmission
from search.graph import Graph, Node, TensorInfo
from search.loss.inference import LossKind, ModelLoss, OutputLoss, infer_losses

RNG = np.random.default_rng(5)


def one(kind: str, **fields: object) -> ModelLoss:
    return ModelLoss((OutputLoss("y", LossKind(kind), **fields),))  # type: ignore[arg-type]


def test_softmax_kl_closed_form() -> None:
    y, x = RNG.normal(size=(2, 6, 5))
    expected = (softmax(y, -1) * (log_softmax(y, -1) - log_softmax(x, -1))).sum(-1)
    np.testing.assert_allclose(one("softmax_kl").per_sample({"y": y}, {"y": x}), expected, rtol=1e-12)
    probabilities = one("softmax_kl", probabilities=True)
    np.testing.assert_allclose(probabilities.per_sample({"y": softmax(y, -1)}, {"y": softmax(x, -1)}), expected)


def test_worked_numbers_of_the_docstring() -> None:
    y, x = np.array([[0.0, np.log(3)]]), np.zeros((1, 2))
    assert one("softmax_kl").per_sample({"y": y}, {"y": x})[0] == pytest.approx(0.131, abs=5e-4)
    assert one("sigmoid_kl").per_sample({"y": y}, {"y": x})[0] == pytest.approx(0.131, abs=5e-4)
    assert one("mse", variance=float(y.var())).per_sample({"y": y}, {"y": x})[0] == pytest.approx(2.0)
    assert one("cosine").per_sample({"y": y}, {"y": x + 1})[0] == pytest.approx(0.293, abs=5e-4)


def test_sigmoid_kl_closed_form_and_far_logits() -> None:
    y, x = RNG.normal(size=(2, 6, 5))
    p, q = expit(y), expit(x)
    expected = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(-1)
    np.testing.assert_allclose(one("sigmoid_kl").per_sample({"y": y}, {"y": x}), expected, rtol=1e-9)
    far = one("sigmoid_kl").per_sample({"y": np.array([[800.0]])}, {"y": np.array([[-800.0]])})
    assert far[0] == pytest.approx(800.0)


def test_cosine_and_mse_closed_forms() -> None:
    y, x = RNG.normal(size=(2, 6, 5))
    cosine = (y * x).sum(-1) / np.linalg.norm(y, axis=-1) / np.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(one("cosine").per_sample({"y": y}, {"y": x}), 1 - cosine, rtol=1e-10)
    np.testing.assert_allclose(one("mse", variance=2.0).per_sample({"y": y}, {"y": x}), ((x - y) ** 2).mean(-1) / 2)


def test_small_kl_is_resolved_in_float32_logits() -> None:
    y = RNG.normal(size=(1, 10)).astype(np.float32)
    x = y.copy()
    x[0, 3] += np.float32(1e-4)
    p = softmax(y.astype(np.float64))[0, 3]
    step = float(x[0, 3]) - float(y[0, 3])
    expected = 0.5 * p * (1 - p) * step**2
    assert one("softmax_kl").per_sample({"y": y}, {"y": x})[0] == pytest.approx(expected, rel=1e-3)


def test_positions_are_averaged_and_masked() -> None:
    y, x = RNG.normal(size=(2, 3, 4, 5))
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    each = (softmax(y, -1) * (log_softmax(y, -1) - log_softmax(x, -1))).sum(-1)
    np.testing.assert_allclose(one("softmax_kl").per_sample({"y": y}, {"y": x}), each.mean(1))
    masked = one("softmax_kl", mask="m").per_sample({"y": y}, {"y": x}, {"m": mask})
    np.testing.assert_allclose(masked, [each[0, :2].mean(), each[1].mean(), 0.0], atol=1e-15)
    with pytest.raises(ValueError, match="needs the input 'm'"):
        one("softmax_kl", mask="m").per_sample({"y": y}, {"y": x})
    with pytest.raises(ValueError, match="positions"):
        one("softmax_kl", mask="m").per_sample({"y": y}, {"y": x}, {"m": mask[:, :3]})


def test_class_axis_one_is_per_pixel() -> None:
    y, x = RNG.normal(size=(2, 3, 5, 2, 2))
    moved = [np.moveaxis(v, 1, -1) for v in (y, x)]
    flat = one("softmax_kl").per_sample({"y": moved[0]}, {"y": moved[1]})
    np.testing.assert_allclose(one("softmax_kl", class_axis=1).per_sample({"y": y}, {"y": x}), flat)


@pytest.mark.parametrize("kind", ["softmax_kl", "sigmoid_kl", "mse", "cosine"])
@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 6)])
def test_factor_is_the_second_order_term(kind: str, shape: tuple[int, ...]) -> None:
    y, z = RNG.normal(size=(2, *shape))
    loss = one(kind, variance=1.7, norm=0.3)
    for step in (1e-3, 1e-4):
        value = loss.per_sample({"y": y}, {"y": y + step * z})
        factor = loss.factor({"y": y}, {"y": y + step * z})
        np.testing.assert_allclose(0.5 * (factor**2).sum(1), value, rtol=20 * step)


@pytest.mark.parametrize("kind, shift", [("softmax_kl", 3.0), ("cosine", None)])
def test_factor_ignores_what_the_loss_ignores(kind: str, shift: float | None) -> None:
    y = RNG.normal(size=(4, 6))
    moved = y + shift if shift is not None else 2.0 * y
    np.testing.assert_allclose(one(kind).factor({"y": y}, {"y": moved}), 0, atol=1e-12)
    np.testing.assert_allclose(one(kind).per_sample({"y": y}, {"y": moved}), 0, atol=1e-12)


def test_factor_of_probabilities_equals_that_of_logits() -> None:
    y, z = RNG.normal(size=(2, 4, 6))
    of_logits = one("softmax_kl").factor({"y": y}, {"y": y + 1e-5 * z})
    p, q = softmax(y, -1), softmax(y + 1e-5 * z, -1)
    of_probabilities = one("softmax_kl", probabilities=True).factor({"y": p}, {"y": q})
    np.testing.assert_allclose(of_probabilities, of_logits, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("kind", ["softmax_kl", "sigmoid_kl", "mse", "cosine"])
def test_hessian_at_the_reference_is_the_factor_gram(kind: str) -> None:
    y = torch.from_numpy(RNG.normal(size=(1, 5)))
    loss = one(kind, variance=0.8)
    hessian = torch.autograd.functional.hessian(lambda x: loss.per_sample_torch({"y": y}, {"y": x}).sum(), y)
    jacobian = torch.autograd.functional.jacobian(lambda x: loss.factor_torch({"y": y}, {"y": x})[0], y)
    gram = jacobian[:, 0].T @ jacobian[:, 0]
    np.testing.assert_allclose(hessian[0, :, 0].numpy(), gram.numpy(), atol=1e-10)


def test_several_outputs_are_normalised_and_round_trip() -> None:
    loss = ModelLoss((OutputLoss("a", LossKind.SOFTMAX_KL), OutputLoss("b", LossKind.MSE, variance=2.0)))
    assert loss.unit == "summed losses"
    scaled = loss.normalised({"a": 0.5, "b": 4.0})
    a, b, c, d = RNG.normal(size=(4, 3, 7))
    parts = loss.per_output({"a": a, "b": b}, {"a": c, "b": d})
    np.testing.assert_allclose(
        scaled.per_sample({"a": a, "b": b}, {"a": c, "b": d}), parts["a"] / 0.5 + parts["b"] / 4.0
    )
    assert scaled.factor({"a": a, "b": b}, {"a": c, "b": d}).shape == (3, 14)
    assert ModelLoss.from_json(scaled.to_json()) == scaled
    assert scaled.unit == "uniform-w8a8 losses"


def test_wide_factors_are_sketched_with_their_inner_products() -> None:
    y = RNG.normal(size=(2, 4, 600))
    u, v = 1e-2 * RNG.normal(size=(2, *y.shape))
    v = v + u
    loss = one("softmax_kl")
    exact = [loss.factor_torch({"y": torch.from_numpy(y)}, {"y": torch.from_numpy(y + z)}).numpy() for z in (u, v)]
    truth = (exact[0] * exact[1]).sum(1)
    estimates = []
    for seed in range(60):
        rows = [loss.factor({"y": y}, {"y": y + z}, sketch_seed=seed) for z in (u, v)]
        assert rows[0].shape == (2, 256)
        estimates.append((rows[0] * rows[1]).sum(1))
    spread = np.std(estimates, axis=0)
    assert np.all(np.abs(np.mean(estimates, axis=0) - truth) < 4 * spread / np.sqrt(60))
    assert np.all(spread < 0.2 * truth)


def test_blocks_of_samples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = RNG.normal(size=(2, 9, 3, 700))
    mask = RNG.integers(0, 2, size=(9, 3))
    loss = one("softmax_kl", mask="m")
    whole = [f({"y": y}, {"y": x}, {"m": mask}) for f in (loss.per_sample, loss.factor)]
    monkeypatch.setattr("search.loss.model_loss._BLOCK_ELEMENTS", 2 * 3 * 700 + 1)
    for expected, f in zip(whole, (loss.per_sample, loss.factor), strict=True):
        np.testing.assert_allclose(f({"y": y}, {"y": x}, {"m": mask}), expected, rtol=1e-12, atol=1e-15)


def graph_of(
    *ops: tuple[str, str, str], outputs: tuple[str, ...] = ("y",), inputs: tuple[TensorInfo, ...] = (), axis: int = -1
) -> Graph:
    """A chain of (op, input, output) nodes; every Add reads the constant `bias`."""
    nodes = tuple(
        Node(i, f"n{i}", op, "", (source, "bias") if op == "Add" else (source,), (target,), {"axis": axis})
        for i, (op, source, target) in enumerate(ops)
    )
    return Graph(
        model=onnx.ModelProto(), sha256="s", content_hash="c", opset=17,
        inputs=inputs, outputs=tuple(TensorInfo(o, np.dtype(np.float32), ("n", None)) for o in outputs), nodes=nodes,
        constants={"bias": np.zeros(3, np.float32)}, layers=(),
    )  # fmt: skip


LOGITS = RNG.normal(size=(8, 10)).astype(np.float32)


def inferred(graph: Graph, values: np.ndarray, **declared: object) -> OutputLoss:
    loss = infer_losses(graph, {"y": values}, {"y": declared} if declared else None)
    return loss.outputs[0]


def test_clear_outputs_are_inferred() -> None:
    gemm = graph_of(("Gemm", "x", "y"))
    assert inferred(gemm, LOGITS).kind is LossKind.SOFTMAX_KL
    assert not inferred(gemm, LOGITS).probabilities
    chain = graph_of(("MatMul", "x", "a"), ("Add", "a", "b"), ("Reshape", "b", "y"))
    assert inferred(chain, LOGITS).kind is LossKind.SOFTMAX_KL
    ends = inferred(graph_of(("Gemm", "x", "a"), ("Softmax", "a", "y")), softmax(LOGITS, -1))
    assert (ends.kind, ends.probabilities) == (LossKind.SOFTMAX_KL, True)
    log = inferred(graph_of(("Gemm", "x", "a"), ("LogSoftmax", "a", "y")), log_softmax(LOGITS, -1))
    assert (log.kind, log.probabilities) == (LossKind.SOFTMAX_KL, False)
    labels = inferred(graph_of(("Gemm", "x", "a"), ("Sigmoid", "a", "y")), expit(LOGITS))
    assert (labels.kind, labels.probabilities) == (LossKind.SIGMOID_KL, True)
    decomposed = inferred(graph_of(("Gemm", "x", "a"), ("Div", "a", "y")), softmax(LOGITS, -1))
    assert decomposed.probabilities


def test_softmax_axis_is_read_from_the_node() -> None:
    values = softmax(RNG.normal(size=(4, 3, 2, 2)), 1).astype(np.float32)
    assert inferred(graph_of(("Conv", "x", "a"), ("Softmax", "a", "y"), axis=1), values).class_axis == 1


def test_token_outputs_take_the_padding_mask() -> None:
    mask = TensorInfo("attention_mask", np.dtype(np.int64), ("n", "length"))
    graph = graph_of(("MatMul", "x", "y"), inputs=(mask,))
    assert inferred(graph, RNG.normal(size=(4, 6, 9)).astype(np.float32)).mask == "attention_mask"
    assert inferred(graph, LOGITS).mask is None


@pytest.mark.parametrize(
    "op, shape", [("LayerNormalization", (4, 8)), ("Tanh", (4, 8)), ("Gemm", (4, 1)), ("Conv", (4, 3, 8, 8)),
                  ("Concat", (4, 50, 6)), ("Gemm", (4,))]
)  # fmt: skip
def test_unclear_outputs_are_refused_with_the_way_to_declare(op: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadSubmission) as caught:
        inferred(graph_of((op, "x", "y")), RNG.normal(size=shape).astype(np.float32))
    assert caught.value.code == "output_kind_unclear"
    assert "'y'" in caught.value.message
    assert '"kind": "softmax_kl"' in caught.value.hint


def test_labels_say_what_nothing_else_does() -> None:
    pooled = graph_of(("GlobalAveragePool", "x", "y"))
    classes = np.arange(20) % LOGITS.shape[1]
    loss = infer_losses(pooled, {"y": LOGITS}, labels=classes)
    assert (loss.outputs[0].kind, loss.outputs[0].class_axis) == (LossKind.SOFTMAX_KL, 1)
    pixels = RNG.normal(size=(4, 3, 8, 8)).astype(np.float32)
    masks = RNG.integers(0, 3, size=(20, 8, 8))
    assert infer_losses(graph_of(("Conv", "x", "y")), {"y": pixels}, labels=masks).outputs[0].class_axis == 1
    with pytest.raises(BadSubmission):
        infer_losses(pooled, {"y": LOGITS}, labels=classes + LOGITS.shape[1])


def test_names_that_speak_against_logits() -> None:
    values = {"pooled_embedding": LOGITS}
    with pytest.raises(BadSubmission):
        infer_losses(graph_of(("Gemm", "x", "pooled_embedding"), outputs=("pooled_embedding",)), values)
    pixels = {"seg_logits": RNG.normal(size=(4, 3, 8, 8)).astype(np.float32)}
    graph = graph_of(("Conv", "x", "seg_logits"), outputs=("seg_logits",))
    assert infer_losses(graph, pixels).outputs[0].class_axis == 1


def test_integer_outputs_are_left_out_with_a_note() -> None:
    graph = graph_of(("Gemm", "x", "y"), ("ArgMax", "y", "best"), outputs=("y", "best"))
    loss = infer_losses(graph, {"y": LOGITS, "best": LOGITS.argmax(1)})
    assert [each.output for each in loss.outputs] == ["y"]
    assert any("'best' is not scored" in note for note in loss.notes)
    with pytest.raises(BadSubmission) as caught:
        infer_losses(graph_of(("ArgMax", "x", "y")), {"y": LOGITS.argmax(1)})
    assert caught.value.code == "output_kind_unclear"


def test_outputs_without_an_entry_per_sample_are_left_out() -> None:
    graph = graph_of(("Gemm", "x", "y"), ("ReduceSum", "y", "total"), outputs=("y", "total"))
    for total in (np.float32(3), np.ones((1, 7), np.float32)):
        outputs = {"y": LOGITS, "total": np.asarray(total)}
        loss = infer_losses(graph, outputs, samples=len(LOGITS))
        assert [each.output for each in loss.outputs] == ["y"]
        assert "Output 'total' is not scored: it has not one entry per sample." in loss.notes
        assert infer_losses(graph, outputs, {"total": {"kind": "ignore"}}, samples=len(LOGITS)).outputs == loss.outputs
        with pytest.raises(BadSubmission) as caught:
            infer_losses(graph, outputs, {"total": {"kind": "mse"}}, samples=len(LOGITS))
        assert caught.value.code == "loss_declaration_invalid"


def test_outputs_that_compare_samples_are_left_out() -> None:
    graph = graph_of(("Gemm", "x", "y"), ("MatMul", "y", "per_image"), outputs=("y", "per_image"))
    square = TensorInfo("per_image", np.dtype(np.float32), ("n", "n"))
    loss = infer_losses(replace(graph, outputs=(graph.outputs[0], square)), {"y": LOGITS, "per_image": LOGITS})
    assert [each.output for each in loss.outputs] == ["y"]


def test_one_probability_per_sample_is_yes_or_no() -> None:
    loss = inferred(graph_of(("Sigmoid", "x", "y")), expit(LOGITS[:, 0]))
    assert (loss.kind, loss.probabilities) == (LossKind.SIGMOID_KL, True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_answers_no_numbers_is_refused(value: float) -> None:
    broken = LOGITS.copy()
    broken[3, 1] = value
    with pytest.raises(BadSubmission, match="NaN or infinity") as caught:
        inferred(graph_of(("Gemm", "x", "y")), broken)
    assert caught.value.code == "outputs_not_finite"


def test_padding_is_masked_in_declared_losses_too() -> None:
    graph = graph_of(("Tanh", "x", "y"), inputs=(TensorInfo("attention_mask", np.dtype(np.int64), ("n", "t")),))
    tokens = RNG.normal(size=(4, 6, 9)).astype(np.float32)
    assert inferred(graph, tokens, kind="cosine").mask == "attention_mask"
    assert inferred(graph, tokens, kind="cosine", mask=None).mask is None
    assert inferred(graph, tokens[:, 0], kind="cosine").mask is None


def test_names_that_say_logits_speak_for_them() -> None:
    graph = graph_of(
        ("Gemm", "x", "h"), ("Squeeze", "h", "s"), ("Tanh", "s", "start_logits"), outputs=("start_logits",)
    )
    (start,) = infer_losses(graph, {"start_logits": LOGITS}).outputs
    assert (start.kind, start.class_axis) == (LossKind.SOFTMAX_KL, -1)


def test_outputs_that_no_layer_feeds_are_left_out() -> None:
    b = Builder(0)
    b.node("MatMul", ["x", b.normal("w", 4, 3)], "y")
    b.node("Neg", ["x"], "negated")
    outputs = {"y": (1, "n", 3), "negated": (1, "n", 4), "x": (1, "n", 4)}
    values = {name: RNG.normal(size=(5, shape[-1])).astype(np.float32) for name, shape in outputs.items()}
    loss = infer_losses(b.graph({"x": (1, "n", 4)}, outputs), values)
    assert [each.output for each in loss.outputs] == ["y"]
    assert sum("no layer that can be quantized feeds it" in note for note in loss.notes) == 2


def test_an_output_that_uniform_w8a8_does_not_change_keeps_its_scale() -> None:
    loss = ModelLoss((OutputLoss("y", LossKind.MSE), OutputLoss("z", LossKind.MSE)))
    assert [each.norm for each in loss.normalised({"y": 0.25, "z": 0.0}).outputs] == [0.25, 1.0]


def test_declarations_win_and_are_checked() -> None:
    graph = graph_of(("Tanh", "x", "y"), inputs=(TensorInfo("m", np.dtype(np.int64), ("n", "t")),))
    mse = inferred(graph, LOGITS, kind="mse")
    assert mse.variance == pytest.approx(LOGITS.astype(np.float64).var())
    assert inferred(graph, RNG.normal(size=(4, 6, 9)), kind="softmax_kl", class_axis=1, mask="m").mask == "m"
    one_number = inferred(graph, LOGITS[:, 0], kind="mse")
    loss = ModelLoss((one_number,)).per_sample({"y": LOGITS[:, 0]}, {"y": LOGITS[:, 0] + 1})
    np.testing.assert_allclose(loss, 1 / one_number.variance, rtol=1e-6)
    for wrong in (
        {"kind": "nonsense"},
        {"kind": "mse", "class_axis": -2},
        {"kind": "mse", "class_axis": 0},
        {"kind": "mse", "class_axis": 2},
        {"kind": "mse", "class_axis": True},
        {"kind": "mse", "mask": "absent"},
        {"kind": "mse", "colour": "red"},
        {"kind": "softmax_kl", "probabilities": "yes"},
    ):
        with pytest.raises(BadSubmission) as caught:
            inferred(graph, LOGITS, **wrong)
        assert caught.value.code == "loss_declaration_invalid"
    with pytest.raises(BadSubmission) as caught:
        infer_losses(graph, {"y": LOGITS}, {"z": {"kind": "mse"}})
    assert caught.value.code == "loss_declaration_invalid"


def test_declared_probabilities_follow_the_graph() -> None:
    graph = graph_of(("Gemm", "x", "a"), ("Softmax", "a", "y"))
    assert inferred(graph, softmax(LOGITS, -1), kind="softmax_kl").probabilities
    assert not inferred(graph, softmax(LOGITS, -1), kind="softmax_kl", probabilities=False).probabilities
