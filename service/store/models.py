"""Tables. All times are seconds since 1970 by the database's clock; JSON columns hold what the API shows."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Double, ForeignKey, Index, String, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

JsonDocument = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class Base(DeclarativeBase):
    """Root of the tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: String,
        float: Double,
        int: BigInteger,
        dict[str, Any]: JsonDocument,
        list[Any]: JsonDocument,
    }


class ModelRow(Base):
    """An uploaded model: immutable files, named by their content. `files` lists {name, sha256, size_bytes}."""

    __tablename__ = "models"
    id: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    size_bytes: Mapped[int]
    files: Mapped[list[Any]]
    created_at: Mapped[float]
    deleted_at: Mapped[float | None]
    __table_args__ = (Index("ix_models_created", "created_at", "id"),)


class DatasetRow(Base):
    """An uploaded dataset: one immutable file. Once `expires_at` has passed it is deleted when no study needs it."""

    __tablename__ = "datasets"
    id: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    format: Mapped[str]
    size_bytes: Mapped[int]
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    deleted_at: Mapped[float | None]
    __table_args__ = (Index("ix_datasets_created", "created_at", "id"),)


class HardwareProfileRow(Base):
    """A profile as a worker announced it or a user described it (`source` is `worker` or `user`).

    `profile_key` is the hash of the document: part of what a latency means.
    """

    __tablename__ = "hardware_profiles"
    slug: Mapped[str] = mapped_column(primary_key=True)
    profile: Mapped[dict[str, Any]]
    profile_key: Mapped[str]
    source: Mapped[str] = mapped_column(default="worker", server_default="worker")
    created_at: Mapped[float]
    announced_at: Mapped[float]


class LatencyTableRow(Base):
    """One version of a profile's latency table: the rows that one upload or one measuring stage added.

    Append-only. What a device knows is the union of the versions with its `identity_key` (device and runtime), a later
    row replacing an earlier one; versions of an earlier driver stay readable and count no more.
    """

    __tablename__ = "latency_tables"
    id: Mapped[str] = mapped_column(primary_key=True)
    hardware: Mapped[str] = mapped_column(ForeignKey("hardware_profiles.slug"))
    version: Mapped[int]
    identity_key: Mapped[str]
    content_sha256: Mapped[str]
    device: Mapped[dict[str, Any]]
    runtime: Mapped[str]
    runtime_version: Mapped[str]
    runs: Mapped[dict[str, Any]]
    row_count: Mapped[int]
    source: Mapped[str]
    study_id: Mapped[str | None]
    created_at: Mapped[float]
    __table_args__ = (UniqueConstraint("hardware", "version"), UniqueConstraint("hardware", "content_sha256"))


class LatencyRowRow(Base):
    """One row of a latency table: `document` is it whole, the other columns are for looking it up."""

    __tablename__ = "latency_rows"
    table_id: Mapped[str] = mapped_column(ForeignKey("latency_tables.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    op_kind: Mapped[str]
    signature: Mapped[str]
    precision: Mapped[str]
    threads: Mapped[int]
    status: Mapped[str]
    scope: Mapped[str]
    median_us: Mapped[float]
    document: Mapped[dict[str, Any]]


class WorkerRow(Base):
    """A live worker process and the queues it takes stages from."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    version: Mapped[str]
    queues: Mapped[list[Any]]
    sandbox: Mapped[str]
    started_at: Mapped[float]
    seen_at: Mapped[float] = mapped_column(index=True)


class StudyRow(Base):
    """What a user submitted. `version` grows with every visible change; it is the ETag and the events' sequence.

    One with a `parent_id` is no study of its own: its stages find one more allocation of the parent (`AllocationRow`).
    """

    __tablename__ = "studies"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    spec: Mapped[dict[str, Any]]
    spec_hash: Mapped[str]
    state: Mapped[str]
    version: Mapped[int]
    cancel_requested_at: Mapped[float | None]
    error: Mapped[dict[str, Any] | None]
    verdicts: Mapped[list[Any] | None]
    created_at: Mapped[float]
    updated_at: Mapped[float]
    finished_at: Mapped[float | None]
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    __table_args__ = (
        Index("ix_studies_created", "created_at", "id"),
        Index("ix_studies_state_created", "state", "created_at", "id"),
        Index("ix_studies_model_created", "model_id", "created_at", "id"),
        Index("ix_studies_dataset", "dataset_id"),
        Index(
            "ix_studies_parent",
            "parent_id",
            postgresql_where=text("parent_id IS NOT NULL"),
            sqlite_where=text("parent_id IS NOT NULL"),
        ),
    )


class StudyTargetRow(Base):
    """One target of a study, for filtering studies by hardware; `created_at` is the study's, for their order."""

    __tablename__ = "study_targets"
    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    hardware: Mapped[str]
    created_at: Mapped[float]
    __table_args__ = (Index("ix_study_targets_hardware_created", "hardware", "created_at", "study_id"),)


class StageRow(Base):
    """One step of a study, leased to one worker at a time. `pending` counts unfinished stages it waits for.

    `fence` grows with every claim and every expiry; a write that shows an older fence is refused. `input_key` hashes
    all that its output depends on, once that is known. A blocked stage whose input another study's live stage already
    works on `follows` that stage. `saved_key` names the parts that attempts on such work have saved. `awaits` is what
    `pending` counts beside stages: `evaluations`, which a user posts.
    """

    __tablename__ = "stages"
    id: Mapped[str] = mapped_column(primary_key=True)
    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    position: Mapped[int]
    kind: Mapped[str]
    shard: Mapped[int]
    target: Mapped[int | None]
    queue: Mapped[str]
    state: Mapped[str]
    pending: Mapped[int]
    input_key: Mapped[str | None]
    saved_key: Mapped[str | None]
    follows: Mapped[str | None]
    awaits: Mapped[str | None]
    attempt: Mapped[int]
    max_attempts: Mapped[int]
    fence: Mapped[int]
    worker_id: Mapped[str | None]
    lease_until: Mapped[float | None]
    not_before: Mapped[float]
    published_at: Mapped[float | None]
    progress: Mapped[dict[str, Any] | None]
    outputs: Mapped[list[Any] | None]
    summary: Mapped[dict[str, Any] | None]
    reused_from: Mapped[str | None]
    error: Mapped[dict[str, Any] | None]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    __table_args__ = (
        UniqueConstraint("study_id", "kind", "shard"),
        Index(
            "ix_stages_lease",
            "lease_until",
            postgresql_where=text("state = 'running'"),
            sqlite_where=text("state = 'running'"),
        ),
        Index(
            "ix_stages_due",
            "not_before",
            postgresql_where=text("state = 'queued'"),
            sqlite_where=text("state = 'queued'"),
        ),
        Index("ix_stages_input_key", "input_key"),
        Index("ix_stages_follows", "follows"),
    )


class LiveStageRow(Base):
    """The one queued or running stage that works on an input; others with the same input follow it."""

    __tablename__ = "live_stages"
    input_key: Mapped[str] = mapped_column(primary_key=True)
    stage_id: Mapped[str] = mapped_column(ForeignKey("stages.id", ondelete="CASCADE"))


class SavedPartRow(Base):
    """A part of a stage's work, kept while the stage goes on; the next attempt, and its shards, start from these."""

    __tablename__ = "saved_parts"
    saved_key: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    size_bytes: Mapped[int]
    created_at: Mapped[float]


class StageLogRow(Base):
    """The end of what a stage's process printed in its last attempt that printed anything; `is_cut`: it was more."""

    __tablename__ = "stage_logs"
    stage_id: Mapped[str] = mapped_column(ForeignKey("stages.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int]
    text: Mapped[str]
    is_cut: Mapped[bool]
    written_at: Mapped[float]


class StageEdgeRow(Base):
    """`after_id` waits for `before_id`."""

    __tablename__ = "stage_edges"
    before_id: Mapped[str] = mapped_column(ForeignKey("stages.id", ondelete="CASCADE"), primary_key=True)
    after_id: Mapped[str] = mapped_column(ForeignKey("stages.id", ondelete="CASCADE"), primary_key=True)


class ArtifactRow(Base):
    """A file a study publishes; its bytes lie in the blob store under `sha256`."""

    __tablename__ = "artifacts"
    id: Mapped[str] = mapped_column(primary_key=True)
    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    stage_id: Mapped[str] = mapped_column(ForeignKey("stages.id", ondelete="CASCADE"))
    target: Mapped[int | None]
    name: Mapped[str]
    media_type: Mapped[str]
    sha256: Mapped[str]
    size_bytes: Mapped[int]
    created_at: Mapped[float]
    __table_args__ = (UniqueConstraint("stage_id", "name"), Index("ix_artifacts_study", "study_id"))


class EventRow(Base):
    """Something that happened to a study; `seq` is the study's version at that moment."""

    __tablename__ = "events"
    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    kind: Mapped[str]
    data: Mapped[dict[str, Any]]


class AllocationRow(Base):
    """An allocation asked of a study after it was solved: a new budget, or a new target.

    `target` is the whole target; `position` is its place among the study's own, None for a new one. `result` is there
    at once when the stored front answers (`origin` is `front`), else the study in `run_id` finds it (`solved`).
    """

    __tablename__ = "allocations"
    id: Mapped[str] = mapped_column(primary_key=True)
    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    position: Mapped[int | None]
    target: Mapped[dict[str, Any]]
    metric: Mapped[str | None]
    origin: Mapped[str]
    run_id: Mapped[str | None] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    result: Mapped[dict[str, Any] | None]
    created_at: Mapped[float]
    __table_args__ = (Index("ix_allocations_study", "study_id", "created_at", "id"),)


class EvaluationRow(Base):
    """What the user's own evaluator measured of one finalist; a later post of the same finalist replaces it."""

    __tablename__ = "evaluations"
    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True)
    target: Mapped[int] = mapped_column(primary_key=True)
    finalist: Mapped[str] = mapped_column(primary_key=True)
    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[float]


class DeploymentRow(Base):
    """The version that serves; workers of another do not take stages."""

    __tablename__ = "deployments"
    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str]
    changed_at: Mapped[float]


class IdempotencyKeyRow(Base):
    """A client's key for one POST and what it made: `body_hash` covers the path too, `resource_id` names the result."""

    __tablename__ = "idempotency_keys"
    key: Mapped[str] = mapped_column(primary_key=True)
    body_hash: Mapped[str]
    resource_id: Mapped[str]
    created_at: Mapped[float] = mapped_column(index=True)


class ApiKeyRow(Base):
    """A key of the API. The secret is stored as its sha256 only; `id` is the key's public prefix."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    secret_sha256: Mapped[str]
    scopes: Mapped[list[Any]]
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]
    last_used_at: Mapped[float | None]


class LoginRow(Base):
    """A browser that showed a key and got a cookie; the cookie's token is stored as its sha256 only."""

    __tablename__ = "logins"
    token_sha256: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[float]
    expires_at: Mapped[float]
