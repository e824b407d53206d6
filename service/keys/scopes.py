"""Scopes: what a key may do, one word per noun and deed. `write` includes `read`; `admin` includes everything."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

Noun = Literal["models", "datasets", "hardware", "studies", "server"]
Deed = Literal["read", "write"]
NOUNS: tuple[Noun, ...] = ("models", "datasets", "hardware", "studies", "server")
DEEDS: tuple[Deed, ...] = ("read", "write")
ADMIN = "admin"
SCOPES: tuple[str, ...] = (*(f"{noun}:{deed}" for noun in NOUNS for deed in DEEDS), ADMIN)


class UnknownScope(ValueError):
    """The text names no scope."""


def parse_scopes(texts: Iterable[str]) -> tuple[str, ...]:
    """The scopes named, each once and in a fixed order; `read` and `write` alone mean every noun.

    Raises `UnknownScope`; also for none at all, since a key that may do nothing is a mistake.
    """
    found: set[str] = set()
    for text in texts:
        named = {f"{noun}:{text}" for noun in NOUNS} if text in DEEDS else {text}
        if not named <= set(SCOPES):
            raise UnknownScope(f"there is no scope {text!r}; there are read, write, {', '.join(SCOPES)}")
        found |= named
    if not found:
        raise UnknownScope("a key needs a scope: read, write, admin, or single ones such as studies:write")
    return tuple(scope for scope in SCOPES if scope in found)


def allows(scopes: Collection[str], noun: Noun, deed: Deed) -> bool:
    """True when somebody with these scopes may do this."""
    return ADMIN in scopes or f"{noun}:{deed}" in scopes or f"{noun}:write" in scopes
