"""Stages by kind, each as `module:function`: whoever runs one alone imports only what that one needs."""

from __future__ import annotations

from collections.abc import Mapping

STAGES: Mapping[str, str] = {
    "check": "search.pipeline:check",
    "scan_shard": "search.scanning:scan_shard",
    "scan": "search.pipeline:scan",
    "measure": "search.pipeline:measure",
    "solve": "search.pipeline:solve",
    "evaluate": "search.pipeline:evaluate",
    "verdict": "search.judging:verdict",
    "answer": "search.answering:answer",
}
