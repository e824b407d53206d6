"""The index of children leaves out studies without a parent: SQLite read all of them whole for a list."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_studies_parent_id", "studies")
    has_parent = sa.text("parent_id IS NOT NULL")
    op.create_index("ix_studies_parent", "studies", ["parent_id"], postgresql_where=has_parent, sqlite_where=has_parent)


def downgrade() -> None:
    op.drop_index("ix_studies_parent", "studies")
    op.create_index("ix_studies_parent_id", "studies", ["parent_id"])
