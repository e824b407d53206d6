"""The house's directions of import, checked by import-linter and by what is really loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "pulp", "onnx", "onnxruntime", "openvino", "numpy"}
LIGHT_MODULES = [
    "service.app",
    "service.store.migrate",
    "workers.tasks",
    "workers.supervisor",
    "workers.server_cli",
    "workers.stage_child",
    "kernels.hardware_profile",
    "kernels.latency_table",
    "bitwright",
    "bitwright.cli",
]


def test_import_contracts() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    answer = subprocess.run([lint, "--no-cache"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_imports_stay_light(module: str) -> None:
    probe = f"import sys, {module}; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", probe], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    assert loaded.stdout.split() == []


def test_the_child_loads_no_web_database_or_queue() -> None:
    foreign = {"fastapi", "starlette", "sqlalchemy", "celery", "kombu", "redis", "service"}
    probe = f"import sys, workers.stage_child; print(*sorted({foreign!r} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", probe], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    assert loaded.stdout.split() == []
