"""The checked-in OpenAPI document is the one this program serves."""

from __future__ import annotations

import json

from service.openapi import DOCUMENT, as_text, current_document


def test_the_checked_in_document_is_current() -> None:
    assert DOCUMENT.read_text() == as_text(current_document()), "write it anew: python -m service.openapi"


def test_operations_are_described_and_guarded() -> None:
    document = json.loads(DOCUMENT.read_text())
    assert document["openapi"].startswith("3.1")
    names = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            names.append(operation["operationId"])
            assert operation.get("description") or operation["summary"], (method, path)
            guarded = operation.get("security") == [{"key": []}, {"login": []}]
            assert guarded is path.startswith("/v1/"), (method, path)
    assert len(set(names)) == len(names)
