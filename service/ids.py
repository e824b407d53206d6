"""Ids: made and parsed here alone. A prefix says the kind, so that a swapped id is noticed at once."""

from __future__ import annotations

import secrets

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LENGTH = 16


def new_id(kind: str) -> str:
    """A fresh id such as `study_3f9k2m8q1x7c4v6b`: 80 random bits in an alphabet without look-alikes."""
    return f"{kind}_" + "".join(secrets.choice(ALPHABET) for _ in range(_LENGTH))
