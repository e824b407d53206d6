"""Keys and logins, latency tables, deletion of models and datasets, indexes of the lists."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

JSON_DOCUMENT = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("secret_sha256", sa.String(), nullable=False),
        sa.Column("scopes", JSON_DOCUMENT, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.Column("last_used_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "logins",
        sa.Column("token_sha256", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("token_sha256"),
    )
    op.create_index("ix_logins_key_id", "logins", ["key_id"])
    op.create_table(
        "latency_tables",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("hardware", sa.String(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("identity_key", sa.String(), nullable=False),
        sa.Column("content_sha256", sa.String(), nullable=False),
        sa.Column("device", JSON_DOCUMENT, nullable=False),
        sa.Column("runtime", sa.String(), nullable=False),
        sa.Column("runtime_version", sa.String(), nullable=False),
        sa.Column("runs", JSON_DOCUMENT, nullable=False),
        sa.Column("row_count", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("study_id", sa.String(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["hardware"], ["hardware_profiles.slug"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("hardware", "version"),
        sa.UniqueConstraint("hardware", "content_sha256"),
    )
    op.create_table(
        "latency_rows",
        sa.Column("table_id", sa.String(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("op_kind", sa.String(), nullable=False),
        sa.Column("signature", sa.String(), nullable=False),
        sa.Column("precision", sa.String(), nullable=False),
        sa.Column("threads", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("median_us", sa.Double(), nullable=False),
        sa.Column("document", JSON_DOCUMENT, nullable=False),
        sa.ForeignKeyConstraint(["table_id"], ["latency_tables.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("table_id", "position"),
    )
    op.add_column("models", sa.Column("deleted_at", sa.Double(), nullable=True))
    op.create_index("ix_models_created", "models", ["created_at", "id"])
    op.add_column("datasets", sa.Column("expires_at", sa.Double(), nullable=True))
    op.add_column("datasets", sa.Column("deleted_at", sa.Double(), nullable=True))
    op.create_index("ix_datasets_created", "datasets", ["created_at", "id"])
    op.add_column("hardware_profiles", sa.Column("source", sa.String(), nullable=False, server_default="worker"))
    op.drop_index("ix_studies_state", "studies")
    op.drop_index("ix_studies_model_id", "studies")
    op.create_index("ix_studies_state_created", "studies", ["state", "created_at", "id"])
    op.create_index("ix_studies_model_created", "studies", ["model_id", "created_at", "id"])
    op.create_index("ix_studies_dataset", "studies", ["dataset_id"])


def downgrade() -> None:
    for name in ("ix_studies_dataset", "ix_studies_model_created", "ix_studies_state_created"):
        op.drop_index(name, "studies")
    op.create_index("ix_studies_model_id", "studies", ["model_id"])
    op.create_index("ix_studies_state", "studies", ["state"])
    op.drop_index("ix_datasets_created", "datasets")
    op.drop_index("ix_models_created", "models")
    for table, column in (
        ("hardware_profiles", "source"),
        ("datasets", "deleted_at"),
        ("datasets", "expires_at"),
        ("models", "deleted_at"),
    ):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_column(column)
    for table in ("latency_rows", "latency_tables", "logins", "api_keys"):
        op.drop_table(table)
