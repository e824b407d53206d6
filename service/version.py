"""The version of the server, part of every stage's key: another version does not reuse what this one computed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("bitwright-server")
except PackageNotFoundError:  # run from a checkout that is not installed
    VERSION = "0.1.0"
