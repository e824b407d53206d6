"""Settings of the server processes: one frozen object per process, read once from `BITWRIGHT_*` variables."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

LEAST_STAGE_MEMORY_BYTES = 8 << 30


class Settings(BaseSettings):
    """Every default works on a laptop: SQLite, Celery on a folder, blobs in a folder, this CPU."""

    model_config = SettingsConfigDict(env_prefix="BITWRIGHT_", frozen=True)

    data_folder: Path = Field(
        default=Path(".bitwright"), description="Folder of database, broker and blobs when those are local."
    )
    database_url: str = Field(default="", description="SQLAlchemy URL; empty means a SQLite file in the data folder.")
    broker_url: str = Field(
        default="", description="Celery broker URL; empty means a folder of messages in the data folder."
    )
    blob_url: str = Field(
        default="", description="fsspec URL of the blob store; empty means a folder in the data folder."
    )

    host: str = Field(default="127.0.0.1", description="Address the API listens on.")
    port: int = Field(default=8300, ge=0, le=65535, description="Port the API listens on.")
    allowed_hosts: tuple[str, ...] = Field(
        default=("localhost", "127.0.0.1", "[::1]"),
        description="Host names requests may carry; guards against DNS rebinding.",
    )

    auth: Literal["off", "keys"] = Field(
        default="off",
        description="`keys`: every request must carry a key. `off` is for an address only this machine can reach.",
    )
    login_s: float = Field(default=43200.0, gt=0, description="How long a browser stays logged in to the dashboard.")

    upload_limit_bytes: int = Field(default=2 << 30, gt=0, description="Largest accepted upload.")
    upload_idle_s: float = Field(default=60.0, gt=0, description="An upload that sends nothing this long is ended.")
    archive_ratio_limit: float = Field(
        default=200.0, ge=1, description="An archive that unpacks to more than this times its size is refused."
    )
    table_limit_bytes: int = Field(default=32 << 20, gt=0, description="Largest accepted latency table.")
    dataset_lifetime_s: float = Field(
        default=0.0, ge=0, description="Datasets are deleted this long after their upload; 0 keeps them."
    )
    body_limit_bytes: int = Field(default=1 << 20, gt=0, description="Largest accepted JSON body.")
    statement_limit_s: float = Field(
        default=15.0, ge=0, description="Longest PostgreSQL may work on one statement of a request; 0: no limit."
    )
    lock_limit_s: float = Field(
        default=5.0, ge=0, description="Longest a request waits for a lock in PostgreSQL; 0: no limit."
    )
    wait_limit_s: float = Field(default=25.0, gt=0, description="Longest a poll with ?wait= is held.")
    poll_s: float = Field(default=2.0, gt=0, description="Suggested poll interval, sent as Retry-After.")
    idempotency_s: float = Field(default=86400.0, gt=0, description="How long an Idempotency-Key is remembered.")

    log_format: Literal["text", "json"] = Field(
        default="text", description="Log lines for people, or one JSON object each for a collector."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severe log line written."
    )

    lease_s: float = Field(
        default=15.0, gt=0, description="A stage whose worker is silent this long is given to another."
    )
    beat_s: float = Field(default=2.0, gt=0, description="Interval at which a supervisor renews its lease.")
    reap_s: float = Field(default=2.0, gt=0, description="Interval of the reaper and the outbox.")
    resend_s: float = Field(
        default=5.0, gt=0, description="A queued stage nobody claimed is announced again after this."
    )
    retry_backoff_s: float = Field(
        default=5.0, ge=0, description="Wait before the second attempt; grows fourfold each time."
    )
    max_attempts: int = Field(default=3, ge=1, description="Attempts of a stage whose worker dies before it fails.")
    stall_s: float = Field(
        default=60.0, gt=0, description="An idle worker that leaves due stages unclaimed this long starts anew."
    )
    outage_s: float = Field(
        default=3600.0, ge=0, description="How long a worker keeps a stage's result while the database is away."
    )
    worker_silent_s: float = Field(default=30.0, gt=0, description="A worker unheard of for this long counts as gone.")

    sandbox: Literal["auto", "namespaces", "rlimits", "off"] = Field(
        default="auto",
        description="Isolation of stages: `auto` is the best this machine allows; a worker without the named one ends.",
    )
    stage_wall_s: float = Field(default=7200.0, gt=0, description="Longest wall time of one stage.")
    stage_memory_bytes: int = Field(
        default_factory=lambda: max(LEAST_STAGE_MEMORY_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        ge=0,
        description="Address space of a stage's child; 0 means no limit, which CUDA needs.",
    )
    stage_file_bytes: int = Field(default=8 << 30, gt=0, description="Largest file a stage may write.")
    stage_disk_bytes: int = Field(default=64 << 30, gt=0, description="Most disk a stage may take with all its files.")
    stage_threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="Compute threads of a stage's child."
    )
    scan_shards: int = Field(
        default=0, ge=0, le=16, description="Stages a scan is cut into; 0 means one for each live worker that scans."
    )
    stages: str = Field(default="search.stages:STAGES", description="Where the child finds its stage functions.")
    kernels: str = Field(
        default="kernels", description="Module run as `python -m … profile --json` to name this hardware."
    )
    hardware: tuple[str, ...] = Field(
        default=("cpu-local", "cpu-local-openvino"),
        description="Hardware profiles a worker announces where it has them.",
    )

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_folder.absolute() / 'bitwright.sqlite3'}"

    @property
    def resolved_broker_url(self) -> str:
        return self.broker_url or "filesystem://localhost//"

    @property
    def resolved_blob_url(self) -> str:
        return self.blob_url or str(self.data_folder.absolute() / "blobs")

    @property
    def broker_folder(self) -> Path:
        return self.data_folder.absolute() / "broker"

    @property
    def upload_folder(self) -> Path:
        """Where uploads land before they are adopted; on the same disk as the default blob folder."""
        return self.data_folder.absolute() / "uploads"

    def as_environment(self) -> dict[str, str]:
        """The variables that give a child process equal settings."""
        values = self.model_dump(mode="json")
        values["data_folder"] = str(self.data_folder.absolute())
        return {
            f"BITWRIGHT_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }


@lru_cache
def process_settings() -> Settings:
    """The settings of this process, read from the environment at the first call."""
    return Settings()
