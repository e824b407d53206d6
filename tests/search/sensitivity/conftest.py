"""Fixtures of the sensitivity tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .branches import Toy, build


@pytest.fixture
def toy() -> Callable[..., Toy]:
    return build
