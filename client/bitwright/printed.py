"""Printed lines of a study's stages, each told once, however often the study is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bitwright.client import Client

MOST_LINES = 100


class PrintedLines:
    """Follows the log of one study: `news()` is what its stages have printed since the last call."""

    def __init__(self, client: Client, study_id: str) -> None:
        self._client = client
        self._study_id = study_id
        self._seen: dict[tuple[Any, ...], list[str]] = {}

    def news(self) -> list[tuple[str, str]]:
        """New lines with the stage each is of, as `scan` or `measure 1`."""
        found = []
        for item in self._client.log(self._study_id, lines=MOST_LINES):
            places = [item["target"], item["shard"]]
            name = " ".join([item["stage"], *(str(place) for place in places if place is not None)])
            key = (name, item["attempt"])
            found += [(name, line) for line in unseen(self._seen.get(key, []), item["lines"])]
            self._seen[key] = item["lines"]
        return found


def unseen(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """The lines of `now` that follow those of `before`, where both are the ends of one growing text."""
    for kept in range(min(len(before), len(now)), 0, -1):
        if list(before[len(before) - kept :]) == list(now[:kept]):
            return list(now[kept:])
    return list(now)
