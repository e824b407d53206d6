"""ETags: whether what a client has is what it would get."""

from __future__ import annotations


def is_same(known: str | None, etag: str) -> bool:
    """RFC 9110 weak comparison of an If-None-Match header with the ETag; False without the header."""
    if known is None:
        return False
    return known.strip() == "*" or etag.removeprefix("W/") in (
        tag.strip().removeprefix("W/") for tag in known.split(",")
    )
