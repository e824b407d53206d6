"""Stage logs: the end of what stages print, one row each, in a table that no poll of a study reads."""

from __future__ import annotations

from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.store.database import database_now
from service.store.models import StageLogRow
from service.store.studies import rows_changed


def write_log(session: Session, stage_id: str, *, attempt: int, text: str, is_cut: bool) -> None:
    """Put this in place of what the stage had printed before. The caller has proved its claim in this transaction."""
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    values = {"attempt": attempt, "text": text, "is_cut": is_cut, "written_at": database_now()}
    entering = dialect.insert(StageLogRow).values(stage_id=stage_id, **values)
    session.execute(entering.on_conflict_do_update(index_elements=["stage_id"], set_=values))


def forget_logs(session: Session, kept_s: float) -> int:
    """Remove what was printed longer ago than that; returns how many stages it was of."""
    old = delete(StageLogRow).where(StageLogRow.written_at < database_now() - kept_s)
    return rows_changed(session.execute(old.execution_options(synchronize_session=False)))
