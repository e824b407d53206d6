"""Datasets: what is accepted, what each refusal is called, and splits that never share a group."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from small_models import token_model, tokens

from search.data.dataset import Dataset, check_dataset, load_dataset, split_dataset
from search.data.dataset_file import FileLimits
from search.errors import BadSubmission
from search.graph import Graph, TensorInfo


def graph_of(*infos: TensorInfo, fixed_batch: int | None = None) -> Graph:
    return Graph(
        model=onnx.ModelProto(), sha256="s", content_hash="c", opset=17, inputs=infos, outputs=(), nodes=(),
        constants={}, layers=(), fixed_batch=fixed_batch,
    )  # fmt: skip


IMAGE = TensorInfo("image", np.dtype(np.float32), ("batch", 3, "side", "side"))
TOKENS = TensorInfo("tokens", np.dtype(np.int64), ("batch", "length"))
MASK = TensorInfo("mask", np.dtype(np.int64), ("batch", "length"))


def images(count: int = 20, side: int = 4) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, side, side)).astype(np.float32)


def refused(arrays: dict[str, np.ndarray], graph: Graph) -> BadSubmission:
    with pytest.raises(BadSubmission) as caught:
        check_dataset(arrays, graph)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("kind", ["npz", "compressed", "safetensors"])
def test_both_file_kinds_give_the_same_dataset(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    arrays = {"image": images(), "labels": np.arange(20), "groups": np.arange(20) // 2}
    with path.open("wb") as file:
        if kind == "npz":
            np.savez(file, **arrays)
        elif kind == "compressed":
            np.savez_compressed(file, **arrays)
        else:
            save_file(arrays, path)
    dataset = load_dataset(path, graph_of(IMAGE))
    assert len(dataset) == 20
    np.testing.assert_array_equal(dataset.inputs["image"], arrays["image"])
    np.testing.assert_array_equal(dataset.labels, arrays["labels"])
    assert dataset.content_hash == check_dataset(arrays, graph_of(IMAGE)).content_hash
    assert dataset.inputs["image"].flags.writeable


@pytest.mark.parametrize("bad", [40, -41])
def test_ids_must_be_rows_of_the_embedding_they_look_up(bad: int) -> None:
    graph = token_model(rows=40)
    arrays = tokens(20, rows=40)
    arrays["tokens"][:, 0] = -40
    assert len(check_dataset(arrays, graph)) == 20
    arrays["tokens"][19, 5] = bad
    error = refused(arrays, graph)
    assert error.code == "dataset_ids_out_of_range"
    assert "40 rows" in error.message
    assert str(bad) in error.message


def test_content_hash_sees_values_and_names() -> None:
    graph = graph_of(IMAGE)
    base = check_dataset({"image": images()}, graph).content_hash
    changed = images()
    changed[3, 0, 0, 0] += 1
    assert check_dataset({"image": changed}, graph).content_hash != base
    assert check_dataset({"image": images(), "labels": np.zeros(20)}, graph).content_hash != base


def test_fortran_order_survives(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    np.savez(path, image=np.asfortranarray(images()))
    np.testing.assert_array_equal(load_dataset(path, graph_of(IMAGE)).inputs["image"], images())


@pytest.mark.parametrize(
    "arrays, infos, code",
    [
        ({"picture": images()}, (IMAGE,), "dataset_names_mismatch"),
        ({"image": images(), "other": images()}, (IMAGE,), "dataset_names_mismatch"),
        ({}, (IMAGE,), "dataset_names_mismatch"),
        ({"image": images()[..., 0]}, (IMAGE,), "dataset_shape_mismatch"),
        ({"image": images()[:, :2]}, (IMAGE,), "dataset_shape_mismatch"),
        ({"image": images()[..., :3]}, (IMAGE,), "dataset_shape_mismatch"),
        ({"image": images(side=0)}, (IMAGE,), "dataset_shape_mismatch"),
        ({"image": (images() * 99).astype(np.uint8)}, (IMAGE,), "dataset_dtype_mismatch"),
        ({"image": images() * np.nan}, (IMAGE,), "dataset_nonfinite"),
        ({"image": images().astype(np.float64) * 1e300}, (IMAGE,), "dataset_nonfinite"),
        ({"image": images(5)}, (IMAGE,), "dataset_too_small"),
        ({"image": images(), "groups": np.zeros((20, 2), int)}, (IMAGE,), "dataset_groups_invalid"),
        ({"image": images(), "labels": np.zeros(19)}, (IMAGE,), "dataset_length_mismatch"),
        ({"image": images(), "labels": np.full(20, np.inf)}, (IMAGE,), "dataset_nonfinite"),
        ({"tokens": np.zeros((20, 4), int), "mask": np.zeros((20, 5), int)}, (TOKENS, MASK), "dataset_shape_mismatch"),
        ({"tokens": np.zeros((20, 4))}, (TOKENS,), "dataset_dtype_mismatch"),
    ],
)  # fmt: skip
def test_refusals_have_stable_codes(arrays: dict[str, np.ndarray], infos: tuple[TensorInfo, ...], code: str) -> None:
    assert refused(arrays, graph_of(*infos)).code == code


def test_names_hint_lists_expected_and_given() -> None:
    error = refused({"picture": images()}, graph_of(IMAGE))
    assert "image: float32(batch, 3, side, side)" in error.hint
    assert "picture: float32(20, 3, 4, 4)" in error.hint


def test_lossless_integers_and_floats_convert_and_say_so() -> None:
    graph = graph_of(IMAGE, TOKENS)
    dataset = check_dataset({"image": images().astype(np.float64), "tokens": np.ones((20, 7), np.uint8)}, graph)
    assert dataset.inputs["image"].dtype == np.float32
    assert dataset.inputs["tokens"].dtype == np.int64
    assert len(dataset.notes) == 2
    small = TensorInfo("tokens", np.dtype(np.int8), ("batch",))
    assert refused({"tokens": np.full(20, 300)}, graph_of(small)).code == "dataset_dtype_mismatch"


def test_a_model_input_without_samples_axis_is_refused() -> None:
    anchors = TensorInfo("anchors", np.dtype(np.float32), (9, 2))
    assert refused({"anchors": np.zeros((20, 2), np.float32)}, graph_of(anchors)).code == "dataset_shape_mismatch"


def _npy(descr: str, shape: tuple[int, ...], body: bytes) -> bytes:
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def _zip(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in entries.items():
            archive.writestr(name, body)
    return buffer.getvalue()


def _safetensors(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


HOSTILE = {
    "empty": (b"", "dataset_unreadable"),
    "text": (b"image,1,2,3", "dataset_unreadable"),
    "pickle": (pickle.dumps({"image": 1}), "dataset_unreadable"),
    "single array": (_npy("<f4", (2,), b"\0" * 8), "dataset_unreadable"),
    "no header": (_zip({"image.npy": b"nothing"}), "dataset_unreadable"),
    "claims a terabyte": (_zip({"image.npy": _npy("<f4", (1 << 38,), b"\0" * 8)}), "dataset_unreadable"),
    "negative": (_zip({"image.npy": _npy("<f4", (-1, -2), b"\0" * 8)}), "dataset_unreadable"),
    "zero width": (_zip({"image.npy": _npy("|S0", (3,), b"")}), "dataset_unreadable"),
    "objects": (_zip({"image.npy": _npy("|O", (1,), pickle.dumps([1]))}), "dataset_object_array"),
    "evil header": (_zip({"image.npy": b"\x93NUMPY\x01\x00\x0a\x00__import__"}), "dataset_unreadable"),
    "not an array": (_zip({"readme.txt": b"hello"}), "dataset_unreadable"),
    "truncated": (_zip({"image.npy": _npy("<f4", (64,), bytes(256))})[:-30], "dataset_unreadable"),
    "bomb": (_zip({f"a{i}.npy": _npy("|u1", (1 << 16,), bytes(1 << 16)) for i in range(20)}), "dataset_too_large"),
    "many": (_zip({f"a{i}.npy": b"" for i in range(50)}), "dataset_too_large"),
    "header beyond file": (struct.pack("<Q", 1 << 40) + b"{}", "dataset_unreadable"),
    "not json": (_safetensors(b"{]"), "dataset_unreadable"),
    "a list": (_safetensors(b'{"a": [1]}'), "dataset_unreadable"),
    "outside": (
        _safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 8), "dataset_unreadable"
    ),
    "disagrees": (
        _safetensors({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}, b"\0" * 8), "dataset_unreadable"
    ),
    "bfloat16": (
        _safetensors({"a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}, b"\0" * 8),
        "dataset_dtype_mismatch",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_reason(name: str, tmp_path: Path) -> None:
    body, code = HOSTILE[name]
    path = tmp_path / "d.npz"
    path.write_bytes(body)
    with pytest.raises(BadSubmission) as caught:
        load_dataset(path, graph_of(IMAGE), FileLimits(arrays=40, total_bytes=1 << 20))
    assert caught.value.code == code


def test_a_damaged_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, image=images())
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 0xFF
    path.write_bytes(bytes(body))
    with pytest.raises(BadSubmission) as caught:
        load_dataset(path, graph_of(IMAGE))
    assert caught.value.code == "dataset_unreadable"


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSubmission) as caught:
        load_dataset(tmp_path / "absent.npz", graph_of(IMAGE))
    assert caught.value.code == "dataset_unreadable"


def numbered(total: int, groups: np.ndarray | None = None, fixed_batch: int | None = None) -> Dataset:
    return Dataset({"x": np.arange(total, dtype=np.float32)}, np.arange(total), groups, fixed_batch)


@given(st.integers(16, 1500), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_splits_cover_everything_once(total: int, seed: int) -> None:
    splits = split_dataset(numbered(total), seed)
    parts = [splits.calibrate, splits.select, splits.report]
    assert sorted(np.concatenate([part.inputs["x"] for part in parts]).tolist()) == list(range(total))
    assert all(len(part) for part in parts)
    if total >= 192:
        assert len(splits.calibrate) >= 128
    for part in parts:
        np.testing.assert_array_equal(part.labels, part.inputs["x"])
    again = split_dataset(numbered(total), seed)
    np.testing.assert_array_equal(again.calibrate.inputs["x"], splits.calibrate.inputs["x"])


@given(st.lists(st.integers(1, 300), min_size=3, max_size=60), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_a_group_never_straddles(sizes: list[int], seed: int) -> None:
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 7, sizes))
    splits = split_dataset(numbered(len(groups), groups), seed)
    seen = [set(part.groups.tolist()) for part in (splits.calibrate, splits.select, splits.report)]
    assert all(seen)
    assert sum(map(len, seen)) == len(sizes) == len(set.union(*seen))
    assert sum(map(len, splits.indices)) == len(groups)


def test_a_huge_group_leaves_the_others_filled() -> None:
    groups = np.concatenate([np.zeros(900, int), np.arange(1, 601)])
    splits = split_dataset(numbered(1500, groups), 3)
    sizes = sorted(map(len, splits.indices))
    assert sizes[-1] == 900
    assert sizes[0] >= 250


def test_small_groups_hit_the_targets() -> None:
    splits = split_dataset(numbered(900, np.arange(900) // 3), 1)
    assert [abs(len(part) - 300) <= 3 for part in (splits.calibrate, splits.select, splits.report)] == [True] * 3
    assert splits.notes == ()


def test_string_groups_and_too_few_of_them() -> None:
    assert split_dataset(numbered(30, np.array(["a", "b", "c"] * 10)), 0).select.groups is not None
    with pytest.raises(BadSubmission) as caught:
        split_dataset(numbered(30, np.array(["a", "b"] * 15)), 0)
    assert caught.value.code == "dataset_too_few_groups"


def test_few_samples_are_said() -> None:
    notes = " ".join(split_dataset(numbered(100), 0).notes)
    assert "100 samples are fewer than 384" in notes
    assert "interactions between layers are not used" in notes
    assert split_dataset(numbered(384), 0).notes == ()


def test_fixed_batch_gives_whole_chunks_and_says_what_is_left_out() -> None:
    splits = split_dataset(numbered(400, fixed_batch=7), 0)
    for part in (splits.calibrate, splits.select, splits.report):
        chunks = part.chunks(100)
        assert {len(chunk["x"]) % 7 for chunk in chunks} == {0}
        assert max(len(chunk["x"]) for chunk in chunks) == 98
        assert {len(chunk["x"]) for chunk in part.chunks(3)} == {7}
        assert sum(len(chunk["x"]) for chunk in chunks) == len(part)
    assert any("left out" in note for note in splits.notes)
    with pytest.raises(BadSubmission) as caught:
        split_dataset(numbered(40, fixed_batch=13), 0)
    assert caught.value.code == "dataset_too_small"


def test_chunks_keep_order_and_tail() -> None:
    chunks = numbered(10).chunks(4)
    assert [len(chunk["x"]) for chunk in chunks] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([chunk["x"] for chunk in chunks]), np.arange(10))
