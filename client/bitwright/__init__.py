"""Bitwright's client: submit a model, wait for the measured verdict, download what to deploy.

import bitwright
client = bitwright.Client()
study = client.submit("model.onnx", data="d.npz", hardware="cpu-local", budgets={"latency_ms": "0.6x"})
study = client.wait(study.id)
client.download(study.id, "out/")
"""

from bitwright.audit import audit_target
from bitwright.client import Client
from bitwright.errors import (
    AccessDenied,
    ApiError,
    BitwrightError,
    Conflict,
    DamagedDownload,
    InvalidRequest,
    NotFound,
    ServerUnreachable,
    WaitTimeout,
)
from bitwright.gate import Check, Thresholds, check_report
from bitwright.records import Allocation, Artifact, Progress, Study, StudyError
from bitwright.torch_export import convert

__all__ = [
    "AccessDenied",
    "Allocation",
    "ApiError",
    "Artifact",
    "BitwrightError",
    "Check",
    "Client",
    "Conflict",
    "DamagedDownload",
    "InvalidRequest",
    "NotFound",
    "Progress",
    "ServerUnreachable",
    "Study",
    "StudyError",
    "Thresholds",
    "WaitTimeout",
    "audit_target",
    "check_report",
    "convert",
]
__version__ = "0.1.0"
