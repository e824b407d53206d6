"""The OpenAPI document kept in docs/openapi.json: `python -m service.openapi` writes it, a test compares it."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from service.app import create_app
from service.settings import Settings

DOCUMENT = Path(__file__).parents[1] / "docs" / "openapi.json"


def current_document() -> dict[str, Any]:
    """The document this program serves, whatever its settings."""
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(Settings(data_folder=Path(folder)))
        try:
            return app.openapi()
        finally:
            app.state.parts.database.close()


def as_text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCUMENT
    target.write_text(as_text(current_document()))
    print(f"wrote {target}")
