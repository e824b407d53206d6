"""Hostile submissions, small and made in code: each is (what it does, the files it writes, the code it must get)."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

Write = Callable[[Path], None]


def model_of(
    nodes: list[onnx.NodeProto],
    *,
    constants: dict[str, np.ndarray] | None = None,
    inputs: dict[str, list] | None = None,
    outputs: tuple[str, ...] = ("y",),
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "hostile",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (inputs or {"x": [2, 4]}).items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def healthy() -> onnx.ModelProto:
    """A linear layer that every other model here is a corruption of."""
    weight = np.arange(12, dtype=np.float32).reshape(4, 3) / 12
    return model_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], constants={"w": weight})


def changed(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        model = healthy()
        change(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    return write


def written(content: bytes) -> Write:
    return lambda folder: (folder / "model.onnx").write_bytes(content) and None


def graph_of(make: Callable[[], onnx.ModelProto]) -> Write:
    return lambda folder: (folder / "model.onnx").write_bytes(make().SerializeToString()) and None


def zipped(names: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Marker:
    """A pickle that would leave a file behind if anyone loaded it."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch pwned",)


FORMATS: dict[str, bytes] = {
    "empty": b"",
    "zip": zipped({"model.onnx": b"x"}),
    "pt2": zipped({"m/archive_format": b"pt2", "m/models/model.json": b"{}", "m/data/weights/w.pt": b""}),
    "torchscript": zipped({"m/code/__torch__.py": b"", "m/data.pkl": b"", "m/constants.pkl": b""}),
    "torch_pickle": zipped({"m/data.pkl": pickle.dumps(Marker()), "m/version": b"3"}),
    "npz": zipped({"a.npy": b"\x93NUMPY"}),
    "damaged_zip": b"PK\x03\x04" + b"\0" * 60,
    "pickle": pickle.dumps(Marker()),
    "gzip": gzip.compress(b"model"),
    "tar": b"\0" * 257 + b"ustar" + b"\0" * 250,
    "safetensors": (64).to_bytes(8, "little") + b'{"w": {"dtype": "F32"}}'.ljust(64),
    "html": b"<!DOCTYPE html><html>404</html>",
    "json": b'{"graph": {}}',
    "git_lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "elf": b"\x7fELF" + b"\0" * 40,
    "tflite": b"\x1c\0\0\0TFL3" + b"\0" * 40,
    "text": b"ir_version: 8 graph { node { } }",
    "noise": np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8).tobytes(),
    "no_graph": onnx.ModelProto(ir_version=8).SerializeToString(),
}


def initializer_with(**fields: object) -> Write:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        for name, value in fields.items():
            if name == "dims":
                del tensor.dims[:]
                tensor.dims.extend(value)
            else:
                setattr(tensor, name, value)

    return changed(change)


def external(location: str, *, offset: str | None = None, length: str | None = None, data: int | None = None) -> Write:
    """The weight in a file of `data` bytes at `location` (no file when None)."""

    def write(folder: Path) -> None:
        model = healthy()
        tensor = model.graph.initializer[0]
        content = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            if value is not None:
                tensor.external_data.add(key=key, value=value)
        if data is not None:
            (folder / location).write_bytes(content.ljust(data, b"\0")[:data])
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    return write


def linked(make: Callable[[Path], None]) -> Write:
    """External data named `link.data`, where `make(folder)` puts a link or device."""

    def write(folder: Path) -> None:
        external("link.data")(folder)
        make(folder)

    return write


def _symlink(folder: Path) -> None:
    (folder / "secret").write_bytes(b"\0" * 48)
    (folder / "link.data").symlink_to(folder / "secret")


def _folder_link(folder: Path) -> None:
    external("sub/w.data")(folder)
    outside = folder / "outside"
    outside.mkdir()
    (outside / "w.data").write_bytes(b"\0" * 48)
    (folder / "sub").symlink_to(outside)


EXTERNAL: dict[str, tuple[Write, str]] = {
    "parent": (external("../secret.bin"), "external_data_escapes"),
    "hidden_parent": (external("a/../../secret.bin"), "external_data_escapes"),
    "absolute": (external("/etc/passwd"), "external_data_escapes"),
    "windows_parent": (external("..\\secret.bin"), "external_data_escapes"),
    "windows_drive": (external("C:\\secret.bin"), "external_data_escapes"),
    "no_location": (external(""), "external_data_escapes"),
    "null_byte": (external("w\0.data"), "external_data_escapes"),
    "symlink": (linked(_symlink), "external_data_escapes"),
    "symlinked_folder": (_folder_link, "external_data_escapes"),
    "missing": (external("model.onnx.data"), "external_data_missing"),
    "truncated": (external("w.data", data=20), "external_data_missing"),
    "offset_behind_end": (external("w.data", offset="4096", data=48), "external_data_missing"),
    "folder": (linked(lambda folder: (folder / "link.data").mkdir()), "external_data_missing"),
    "named_pipe": (linked(lambda folder: os.mkfifo(folder / "link.data")), "external_data_missing"),
    "length_lies": (external("w.data", length="8", data=48), "model_rejected"),
    "negative_offset": (external("w.data", offset="-4", data=48), "model_rejected"),
    "huge_offset": (external("w.data", offset="9" * 40, data=48), "model_rejected"),
}


def _attribute_elsewhere() -> onnx.ModelProto:
    """Hides external data in a Constant node's attribute of a wrong declared type."""
    model = healthy()
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"]))
    model.graph.node[0].attribute.append(AttributeProto(name="value", type=AttributeProto.TENSOR, t=tensor))
    return model


def _doubling(count: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Concat", [f"t{i}", f"t{i}"], [f"t{i + 1}"], axis=0) for i in range(count)]
    nodes.append(helper.make_node("Identity", [f"t{count}"], ["y"]))
    return model_of(nodes, inputs={"t0": [512]})


def _shape_bomb(op_type: str, target: list[int]) -> onnx.ModelProto:
    sizes = np.array(target, dtype=np.int64)
    if op_type == "ConstantOfShape":
        return model_of([helper.make_node(op_type, ["s"], ["y"])], constants={"s": sizes})
    return model_of([helper.make_node(op_type, ["x", "s"], ["y"])], constants={"s": sizes}, inputs={"x": [1, 1]})


def _nested_ifs(depth: int) -> onnx.ModelProto:
    shown = helper.make_tensor_value_info("o", TensorProto.FLOAT, [2, 4])
    leaf = helper.make_graph([helper.make_node("Identity", ["x"], ["o"])], "leaf", [], [shown])
    inner = leaf
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=leaf)
        inner = helper.make_graph([node], "inner", [], [shown])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=leaf)
    return model_of([branch], constants={"c": np.array(True)})


def _deep_protobuf(depth: int) -> bytes:
    """A graph in an attribute of a node in a graph …, deeper than any parser follows, written byte by byte."""

    def field(number: int, content: bytes) -> bytes:
        size, length = b"", len(content)
        while length > 127:
            size += bytes([length & 127 | 128])
            length >>= 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))  # GraphProto.node, NodeProto.attribute, AttributeProto.g
    return field(7, graph)


def _with_function() -> onnx.ModelProto:
    model = model_of([helper.make_node("Mine", ["x"], ["y"], domain="local")])
    relu = [helper.make_node("Relu", ["a"], ["b"])]
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("local", "Mine", ["a"], ["b"], relu, opset))
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def _foreign(domain: str, op_type: str) -> onnx.ModelProto:
    model = model_of([helper.make_node(op_type, ["x"], ["y"], domain=domain)])
    model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def _loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["a"], ["b"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, None),
        ],
    )
    constants = {"n": np.array(2**62), "k": np.array(True)}
    return model_of([helper.make_node("Loop", ["n", "k", "x"], ["y"], body=body)], constants=constants)


def _layer_norm(axis: int) -> onnx.ModelProto:
    nodes = [helper.make_node("LayerNormalization", ["x", "s"], ["y"], axis=axis)]
    return model_of(nodes, constants={"s": np.ones(4, np.float32)})


def _split(count: int) -> onnx.ModelProto:
    return model_of([helper.make_node("Split", ["x"], ["y"], num_outputs=count)], opset=18)


def _one(op_type: str, shape: list[int] | None = None) -> onnx.ModelProto:
    return model_of([helper.make_node(op_type, ["x"], ["y"])], inputs={"x": shape or [2, 4]})


def _relu(read: str, write: str) -> onnx.NodeProto:
    return helper.make_node("Relu", [read], [write])


def _sequence_input() -> onnx.ModelProto:
    model = healthy()
    model.graph.input.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [1]))
    return model


def _sparse() -> onnx.ModelProto:
    model = healthy()
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [10**12]))
    return model


def _opsets(*versions: int) -> Write:
    def change(model: onnx.ModelProto) -> None:
        del model.opset_import[:]
        model.opset_import.extend(helper.make_opsetid("", version) for version in versions)

    return changed(change)


GRAPHS: dict[str, tuple[Write, str]] = {
    "constant_of_shape_bomb": (graph_of(lambda: _shape_bomb("ConstantOfShape", [10**6, 10**6])), "model_too_large"),
    "wrapping_product": (graph_of(lambda: _shape_bomb("ConstantOfShape", [2**33, 2**33])), "model_too_large"),
    "expand_bomb": (graph_of(lambda: _shape_bomb("Expand", [10**7, 10**7])), "model_too_large"),
    "tile_bomb": (graph_of(lambda: _shape_bomb("Tile", [10**7, 10**7])), "model_too_large"),
    "concat_doubling": (graph_of(lambda: _doubling(40)), "model_too_large"),
    "huge_input": (graph_of(lambda: _one("Relu", [2**40])), "model_too_large"),
    "too_many_parameters": (initializer_with(dims=[10**6, 10**6]), "model_too_large"),
    "wrapping_parameters": (initializer_with(dims=[2**33, 2**33]), "model_too_large"),
    "dims_lie_up": (initializer_with(dims=[40, 30]), "model_rejected"),
    "dims_lie_down": (initializer_with(dims=[1, 3]), "model_rejected"),
    "negative_dims": (initializer_with(dims=[-4, -3]), "model_rejected"),
    "unknown_element_type": (initializer_with(data_type=77), "model_rejected"),
    "string_weight": (initializer_with(data_type=TensorProto.STRING), "model_rejected"),
    "constant_attribute_elsewhere": (graph_of(_attribute_elsewhere), "external_data_escapes"),
    "nested_ifs": (graph_of(lambda: _nested_ifs(20)), "op_unsupported"),
    "nested_ifs_beyond_the_parser": (written(_deep_protobuf(300)), "model_format_unsupported"),
    "endless_loop": (graph_of(_loop), "op_unsupported"),
    "sequence_op": (graph_of(lambda: _one("SequenceConstruct")), "op_unsupported"),
    "optional_op": (graph_of(lambda: _one("Optional")), "op_unsupported"),
    "sequence_input": (graph_of(_sequence_input), "op_unsupported"),
    "function": (graph_of(_with_function), "op_unsupported"),
    "custom_domain": (graph_of(lambda: _foreign("evil.example", "Exec")), "op_unsupported"),
    "contrib_domain": (graph_of(lambda: _foreign("com.microsoft", "Gelu")), "op_unsupported"),
    "ml_domain": (graph_of(lambda: _foreign("ai.onnx.ml", "Normalizer")), "op_unsupported"),
    "unknown_op": (graph_of(lambda: _one("Teleport")), "op_unsupported"),
    "op_of_a_later_opset": (graph_of(lambda: _one("Gelu")), "op_unsupported"),
    "sparse_initializer": (graph_of(_sparse), "op_unsupported"),
    "opset_of_the_future": (_opsets(999), "model_rejected"),
    "no_opset": (_opsets(), "model_format_unsupported"),
    "two_opsets": (_opsets(13, 17), "model_rejected"),
    "no_nodes": (changed(lambda model: model.graph.ClearField("node")), "model_rejected"),
    "no_outputs": (changed(lambda model: model.graph.ClearField("output")), "model_rejected"),
    "unsorted": (changed(lambda m: m.graph.node.insert(0, _relu("y", "z"))), "model_rejected"),
    "cycle": (changed(lambda m: m.graph.node.append(_relu("z", "z"))), "model_rejected"),
    "output_written_twice": (changed(lambda m: m.graph.node.append(_relu("x", "y"))), "model_rejected"),
    "missing_tensor": (changed(lambda model: model.graph.ClearField("initializer")), "model_rejected"),
    "output_from_nowhere": (changed(lambda m: setattr(m.graph.output[0], "name", "elsewhere")), "model_rejected"),
    "axis_far_beyond_the_rank": (graph_of(lambda: _layer_norm(2**31)), "model_rejected"),
    "axis_beyond_the_rank": (graph_of(lambda: _layer_norm(9)), "model_rejected"),
    "split_into_more_than_its_outputs": (graph_of(lambda: _split(2)), "model_rejected"),
    "shapes_do_not_fit": (initializer_with(dims=[3, 4]), "model_rejected"),
}  # fmt: skip
