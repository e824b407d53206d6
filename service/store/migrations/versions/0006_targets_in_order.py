"""Targets carry their study's time: studies of a hardware were all found before one page of them was sorted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


# The version before goes on entering studies until it is replaced, and does not know the column.
NOW = {
    "sqlite": "((julianday('now')-2440587.5)*86400.0)",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
}


def upgrade() -> None:
    with op.batch_alter_table("study_targets") as batch:
        batch.drop_index("ix_study_targets_hardware")
        batch.add_column(sa.Column("created_at", sa.Double(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE study_targets SET created_at ="
        " (SELECT studies.created_at FROM studies WHERE studies.id = study_targets.study_id)"
    )
    with op.batch_alter_table("study_targets") as batch:
        batch.alter_column("created_at", server_default=sa.text(NOW[op.get_bind().dialect.name]))
        batch.create_index("ix_study_targets_hardware_created", ["hardware", "created_at", "study_id"])


def downgrade() -> None:
    with op.batch_alter_table("study_targets") as batch:
        batch.drop_index("ix_study_targets_hardware_created")
        batch.drop_column("created_at")
        batch.create_index("ix_study_targets_hardware", ["hardware"])
