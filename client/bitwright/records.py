"""What the server says, as values. Fields a newer server adds are kept in `raw` and never break an older client."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

Record = TypeVar("Record", "Progress", "StudyError", "Artifact")


@dataclass(frozen=True)
class Progress:
    """How far the running step is."""

    done: int
    total: int
    unit: str
    eta_s: float | None
    message: str = ""


@dataclass(frozen=True)
class StudyError:
    """Why a study failed: category `user` (change the submission) or `infrastructure` (the server's fault)."""

    category: str
    code: str
    message: str
    hint: str


@dataclass(frozen=True)
class Study:
    """A study as last seen. Ask `is_terminal`, never compare states: a newer server may know more of them."""

    id: str
    name: str
    state: str
    is_terminal: bool
    stage: str | None
    progress: Progress | None
    waiting_for: str | None
    verdicts: tuple[dict[str, Any], ...]
    error: StudyError | None
    raw: dict[str, Any] = field(repr=False)
    etag: str = field(default="", repr=False)

    @property
    def succeeded(self) -> bool:
        return self.state == "succeeded"

    @property
    def is_infeasible(self) -> bool:
        """True when some target's budget cannot be reached; the verdict names the nearest one that can."""
        return any(verdict_of(verdict) == "infeasible" for verdict in self.verdicts)

    @classmethod
    def from_json(cls, data: dict[str, Any], etag: str = "") -> Study:
        progress, error, waiting = data.get("progress"), data.get("error"), data.get("waiting_for")
        return cls(
            id=data["id"],
            name=data.get("name", ""),
            state=data["state"],
            is_terminal=bool(data["is_terminal"]),
            stage=data.get("stage"),
            progress=_known(Progress, progress) if progress else None,
            waiting_for=waiting["reason"] if waiting else None,
            verdicts=tuple(data.get("verdicts") or ()),
            error=_known(StudyError, error) if error else None,
            raw=data,
            etag=etag,
        )


@dataclass(frozen=True)
class Artifact:
    """A file the study made; `target` is the position of the target it belongs to."""

    id: str
    name: str
    target: int | None
    sha256: str
    size_bytes: int
    href: str

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Artifact:
        return _known(cls, data)


@dataclass(frozen=True)
class Allocation:
    """An allocation asked of a solved study; `result` holds its precisions and predicted costs once it is there."""

    id: str
    study: str
    origin: str
    state: str
    is_terminal: bool
    result: dict[str, Any] | None
    error: StudyError | None
    raw: dict[str, Any] = field(repr=False)

    @property
    def is_infeasible(self) -> bool:
        """True when the budgets cannot be met; the allocation is then the nearest one."""
        return self.result is not None and self.result.get("infeasible") is not None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Allocation:
        error = data.get("error")
        return cls(
            id=data["id"],
            study=data["study"],
            origin=data["origin"],
            state=data["state"],
            is_terminal=bool(data["is_terminal"]),
            result=data.get("result"),
            error=_known(StudyError, error) if error else None,
            raw=data,
        )


def verdict_of(verdict: dict[str, Any]) -> str:
    """The word of a verdict: `chosen`, `no_gain` or `infeasible`."""
    return str(verdict.get("verdict") or verdict.get("kind") or "")


def _known(kind: type[Record], data: dict[str, Any]) -> Record:
    return kind(**{one.name: data[one.name] for one in fields(kind) if one.name in data})
