"""Formats: files told apart by their first bytes, so that what is code by design is refused before it is stored."""

from __future__ import annotations

from service.errors import Problem

STUDY_FILE_SUFFIXES = (".onnx", ".json", ".npz", ".html")
EXPORT_HINT = "export it on your machine: torch.onnx.export(model, example, 'model.onnx'), or bitwright.convert(...)"


def check_model_format(head: bytes, size_bytes: int) -> None:
    """Raises `Problem` (`model_format_unsupported`, `empty_upload`) for what cannot be an ONNX file.

    ONNX has no magic number: what passes here is only not known to be something else, and the check stage,
    in its sandbox, is the first to parse it.
    """
    _not_empty(size_bytes)
    known = (
        (b"PK\x03\x04", "a zip archive (.pt, .pth, .pt2, TorchScript, .keras; a zip of ONNX files goes in `archive`)"),
        (b"PK\x05\x06", "an empty zip archive"),
        (b"\x89HDF", "an HDF5 file (Keras)"),
        (b"\x1f\x8b", "a gzip file"),
        (b"{", "JSON text"),
        (b"<", "XML or HTML text"),
        (b"\x7fELF", "a program"),
    )
    for magic, meaning in known:
        if head.startswith(magic):
            raise _unsupported(meaning)
    if len(head) > 1 and head[0] == 0x80 and head[1] in range(2, 6):
        raise _unsupported("a Python pickle, which is a program")
    if head[4:8] == b"TFL3":
        raise _unsupported("a TensorFlow Lite file")


def dataset_format(head: bytes, size_bytes: int) -> str:
    """`npz` or `safetensors`; raises `Problem` (`dataset_format_unsupported`, `empty_upload`) for anything else."""
    _not_empty(size_bytes)
    if head.startswith(b"PK\x03\x04"):
        return "npz"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size_bytes:
        return "safetensors"
    raise Problem(
        415,
        "dataset_format_unsupported",
        "the file is neither .npz nor .safetensors",
        hint="numpy.savez('data.npz', input=array, labels=labels), arrays named after the model's inputs",
    )


def check_external_data_names(names: list[str]) -> None:
    """Raises `Problem` (`external_data_name`) for names given twice or taken by the files of a study."""
    for name in names:
        if names.count(name) > 1 or name.startswith("dataset.") or name.endswith(STUDY_FILE_SUFFIXES):
            raise Problem(
                422,
                "external_data_name",
                f"an external data file cannot be called {name!r}" + (" twice" if names.count(name) > 1 else ""),
                hint="save the model with external data in one file such as model.onnx.data",
            )


def _not_empty(size_bytes: int) -> None:
    if size_bytes == 0:
        raise Problem(422, "empty_upload", "the file is empty", hint="check the path that was sent")


def _unsupported(meaning: str) -> Problem:
    return Problem(415, "model_format_unsupported", f"the file is {meaning}, not ONNX", hint=EXPORT_HINT)
