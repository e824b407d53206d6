"""Measured rows: what a measuring stage found joins the latency table of its device, for every later study."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from kernels.errors import BadTable
from kernels.latency_table import LatencyTable
from service.hardware_profiles.tables import ForeignTable, append_table
from service.store.models import HardwareProfileRow
from workers.claims import Claim

log = logging.getLogger(__name__)
TABLE = "latency_table_0.json"


def rows_to_append(
    files: Path, outputs: list[str], spec: dict[str, Any], held: Claim
) -> Callable[[Session], None] | None:
    """A write that adds the rows of the stage's table to the store; None when it wrote none that can be read."""
    if TABLE not in outputs:
        return None
    try:
        table = LatencyTable.loads((files / TABLE).read_text())
    except (BadTable, OSError, ValueError) as error:
        log.warning("stage %s wrote a latency table that cannot be read: %s", held.stage_id, error)
        return None
    slug = str(spec["targets"][0]["hardware"])

    def append(session: Session) -> None:
        profile = session.get(HardwareProfileRow, slug)
        if profile is None:
            return
        try:
            append_table(session, profile, table, source="study", study_id=held.study_id)
        except ForeignTable as error:
            # The device was announced anew meanwhile; the study keeps its rows, the store asks for fresh ones.
            log.warning("rows of stage %s are not kept for %s: %s", held.stage_id, slug, error)

    return append
