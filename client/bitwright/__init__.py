"""Bitwright's client: submit a model, wait for the measured verdict, download what to deploy.

import bitwright
client = bitwright.Client()
study = client.submit("model.onnx", data="d.npz", hardware="cpu-local", budgets={"latency_ms": "0.6x"})
study = client.wait(study.id)
client.download(study.id, "out/")
"""

from bitwright.client import Client
from bitwright.errors import (
    ApiError,
    BitwrightError,
    Conflict,
    DamagedDownload,
    InvalidRequest,
    NotFound,
    ServerUnreachable,
    WaitTimeout,
)
from bitwright.records import Artifact, Progress, Study, StudyError
from bitwright.torch_export import convert

__all__ = [
    "ApiError",
    "Artifact",
    "BitwrightError",
    "Client",
    "Conflict",
    "DamagedDownload",
    "InvalidRequest",
    "NotFound",
    "Progress",
    "ServerUnreachable",
    "Study",
    "StudyError",
    "WaitTimeout",
    "convert",
]
__version__ = "0.1.0"
