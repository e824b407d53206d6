"""The fault matrix: what is done to a stack, at which point of a stage, and what must hold afterwards.

A case submits one study, waits until a process stands exactly at its point, does the damage, lets everybody go on,
starts again what died (as `up`, systemd or compose would), and then looks at what became of the study.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import func, select

from service.store.models import ArtifactRow, EventRow, SavedPartRow, StageRow, StudyRow
from tests.faults.running_stack import PostgresStack, Stack, wait_until

IDLE = "while idle"
MID_STAGE = "mid-stage"
OUTPUT_WRITTEN = "output written"
PARTS_SAVED = "parts saved"
HOLD_AT_ROW = 2
STATE_POINTS = {
    "before a claim": "before_claim",
    "output, no commit": "before_commit",
    "inside the commit": "inside_commit",
    "committed, not told": "before_wake",
    "after the commit": "after_commit",
}
DOWN_S = 0.3
END_LIMIT_S = 45.0
BOTH = ("sqlite", "postgresql")


@dataclass(frozen=True)
class Case:
    """One cell of the matrix."""

    fault: str
    point: str
    stack: str

    @property
    def name(self) -> str:
        return f"{self.stack}: {self.fault}, {self.point}"


@dataclass
class Outcome:
    """What became of the study. `lost`: it did not end, or not well. `duplicated`: stages or files there twice."""

    case: Case
    state: str = ""
    attempts: int = 0
    duplicated: list[str] = field(default_factory=list)
    computed_again: list[str] = field(default_factory=list)
    seconds: float = 0.0
    problem: str = ""

    @property
    def lost(self) -> bool:
        return self.state != "succeeded"

    @property
    def holds(self) -> bool:
        return not (self.lost or self.duplicated or self.computed_again or self.problem)


# Faults. Each does its damage while a process stands at the point, and returns what to do once all go on.
Aftermath = Callable[[], None]


def _respawn(stack: Stack, *roles: str) -> Aftermath:
    def start() -> None:
        time.sleep(DOWN_S)
        for role in roles:
            stack.spawn(role)

    return start


def kill_child(stack: Stack) -> Aftermath:
    for pid in stack.stage_processes():
        _kill(pid)
    return lambda: None


def kill_pool_process(stack: Stack) -> Aftermath:
    for pid in stack.pool_processes():
        _kill(pid)
    return lambda: None


def kill_worker(stack: Stack) -> Aftermath:
    stack.kill("worker")
    return _respawn(stack, "worker")


def kill_api(stack: Stack) -> Aftermath:
    stack.kill("api")
    return _respawn(stack, "api")


def kill_reaper_and_worker(stack: Stack) -> Aftermath:
    """The worker too, for without it nobody would need the reaper."""
    stack.kill("reaper")
    stack.kill("worker")
    return _respawn(stack, "worker", "reaper")


def kill_everything(stack: Stack) -> Aftermath:
    """A power cut: servers and processes, at once."""
    for role in ("worker", "reaper", "api"):
        stack.kill(role)
    if isinstance(stack, PostgresStack):
        stack.postgres.kill()
        stack.redis.kill()

    def start() -> None:
        if isinstance(stack, PostgresStack):
            stack.redis.start()
            stack.postgres.start()
        _respawn(stack, "api", "worker", "reaper")()

    return start


def kill_redis(stack: Stack) -> Aftermath:
    assert isinstance(stack, PostgresStack)
    stack.redis.kill()  # and with it every message

    def start() -> None:
        time.sleep(DOWN_S)
        stack.redis.start()

    return start


def kill_postgresql(stack: Stack) -> Aftermath:
    assert isinstance(stack, PostgresStack)
    stack.postgres.kill()

    def start() -> None:
        time.sleep(DOWN_S)
        stack.postgres.start()

    return start


def postgresql_away_beyond_the_lease(stack: Stack) -> Aftermath:
    start = kill_postgresql(stack)

    def late() -> None:
        time.sleep(stack.settings.lease_s)
        start()

    return late


def drop_messages(stack: Stack) -> Aftermath:
    if isinstance(stack, PostgresStack):
        stack.redis.client().flushall()
    else:
        for message in stack.settings.broker_folder.iterdir():
            message.unlink(missing_ok=True)
    return lambda: None


def double_messages(stack: Stack) -> Aftermath:
    """Every stage of the newest study announced twice more, whatever its state, now and later."""
    from service.queue.celery_settings import make_celery
    from service.queue.outbox import celery_sender

    send = celery_sender(make_celery(stack.settings))
    newest = select(StudyRow.id).order_by(StudyRow.created_at.desc()).limit(1).scalar_subquery()

    def again() -> None:
        with stack.database.read() as session:
            stages = session.execute(select(StageRow.id, StageRow.queue).where(StageRow.study_id == newest)).all()
        for stage_id, queue in [*stages, *stages]:
            send(stage_id, queue)

    again()
    return again


def plant_garbage(stack: Stack) -> Aftermath:
    if isinstance(stack, PostgresStack):
        body = b'{"body": "e30=", "headers": {}, "content-type": "application/x-python-serialize", "properties": {}}'
        stack.redis.client().lpush("check", body)
    else:
        for number, content in enumerate((b"", b"{", b"\xff\xfe", b"[]")):
            (stack.settings.broker_folder / f"0_{number}.check.msg").write_bytes(content)
    return lambda: None


def stop_worker_beyond_the_lease(stack: Stack) -> Aftermath:
    """The worker sleeps past its lease, another takes over, and the first wakes and wants to write."""
    os.killpg(stack.processes["worker"].pid, signal.SIGSTOP)
    stack.spawn("worker", "heir")

    def wake() -> None:
        time.sleep(stack.settings.lease_s + 1.0)
        stack.release()
        time.sleep(0.5)
        os.killpg(stack.processes["worker"].pid, signal.SIGCONT)

    def end_heir() -> None:
        stack.end("heir")

    stack.cleanups.append(end_heir)
    return wake


def end_worker_gracefully(stack: Stack) -> Aftermath:
    """SIGTERM, as a deployment does it. The processes may have to be let go before they can end."""
    stack.processes["worker"].terminate()

    def start() -> None:
        stack.processes.pop("worker").wait(20)
        stack.spawn("worker")

    return start


def end_worker_group_gracefully(stack: Stack) -> Aftermath:
    """SIGTERM to every process of the worker, as systemd sends it."""
    for pid in stack.pool_processes():
        os.kill(pid, signal.SIGTERM)
    return end_worker_gracefully(stack)


FAULTS: dict[str, Callable[[Stack], Aftermath]] = {
    "kill -9 child": kill_child,
    "kill -9 pool process": kill_pool_process,
    "kill -9 worker group": kill_worker,
    "kill -9 API": kill_api,
    "kill -9 reaper + worker": kill_reaper_and_worker,
    "kill -9 Redis": kill_redis,
    "kill -9 PostgreSQL": kill_postgresql,
    "PostgreSQL away > lease": postgresql_away_beyond_the_lease,
    "power cut": kill_everything,
    "messages dropped": drop_messages,
    "messages doubled": double_messages,
    "garbage in the queue": plant_garbage,
    "SIGSTOP > lease, SIGCONT": stop_worker_beyond_the_lease,
    "SIGTERM worker": end_worker_gracefully,
    "SIGTERM worker group": end_worker_group_gracefully,
}


def matrix() -> list[Case]:
    """Every cell that means something."""
    before, output, inside, untold, after = STATE_POINTS
    at_worker = (before, MID_STAGE, PARTS_SAVED, output, inside, untold, after)
    cells: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
        ("kill -9 child", (MID_STAGE, PARTS_SAVED, OUTPUT_WRITTEN), BOTH),  # before and after these there is none
        ("kill -9 pool process", (IDLE, *at_worker), BOTH),
        ("kill -9 worker group", (IDLE, *at_worker, OUTPUT_WRITTEN), BOTH),
        ("kill -9 API", (before, MID_STAGE, output, inside, after), BOTH),
        ("kill -9 reaper + worker", (before, MID_STAGE, output), BOTH),
        ("kill -9 Redis", (IDLE, before, MID_STAGE, output, after), ("postgresql",)),
        ("kill -9 PostgreSQL", (IDLE, *at_worker), ("postgresql",)),
        ("PostgreSQL away > lease", (MID_STAGE, output), ("postgresql",)),
        ("power cut", (before, MID_STAGE, PARTS_SAVED, output, inside), BOTH),
        ("messages dropped", (before, MID_STAGE, output), BOTH),
        ("messages doubled", (before, MID_STAGE, output), BOTH),
        ("garbage in the queue", (before, MID_STAGE), BOTH),
        ("SIGSTOP > lease, SIGCONT", (before, MID_STAGE, PARTS_SAVED, output), BOTH),
        ("SIGSTOP > lease, SIGCONT", (inside,), ("postgresql",)),  # on SQLite it would hold the only write lock
        ("SIGTERM worker", (before, MID_STAGE, PARTS_SAVED, output, after), BOTH),
        ("SIGTERM worker group", (MID_STAGE,), BOTH),
    ]
    return [Case(fault, point, stack) for fault, points, stacks in cells for stack in stacks for point in points]


def run_case(stack: Stack, case: Case) -> Outcome:
    """Do one cell on a running stack and leave the stack running."""
    begun = time.monotonic()
    outcome = Outcome(case)
    stack.rearm()
    ledger = stack.points / "ledger"
    try:
        if case.point == IDLE:
            FAULTS[case.fault](stack)()
            study_id = stack.submit(ledger=str(ledger))
        else:
            study_id = _submit_and_reach(stack, case, ledger)
    except AssertionError as error:
        outcome.problem = f"the case could not be set up: {error}"
        stack.release()
        return outcome
    if case.point != IDLE:
        aftermath = FAULTS[case.fault](stack)
        if case.fault != "SIGSTOP > lease, SIGCONT":
            stack.release()
        aftermath()
        stack.release()
    try:
        stack.wait(study_id, END_LIMIT_S)
    except AssertionError as error:
        outcome.problem = str(error)
    _judge(stack, study_id, case, ledger, outcome)
    stack.clean_up()
    stack.await_ready()
    outcome.seconds = time.monotonic() - begun
    return outcome


def _submit_and_reach(stack: Stack, case: Case, ledger: Path) -> str:
    """A study of which a process stands at the case's point."""
    rows = ledger.with_name("rows")
    tiny: dict[str, object] = {"ledger": str(ledger), "rows": str(rows)}
    if case.point in STATE_POINTS:
        point = STATE_POINTS[case.point]
        stack.arm(point)
        study_id = stack.submit(**tiny)
        stack.await_point(point)
        return study_id
    once = stack.points / "once"
    tiny |= {"once": str(once), "until": str(stack.points / "go.hold")}
    if case.point == PARTS_SAVED:
        study_id = stack.submit(**tiny, hold_at_row=HOLD_AT_ROW)
        wait_until("parts are saved", lambda: _parts(stack, study_id) >= HOLD_AT_ROW)
    else:
        kind = "scan" if case.point == MID_STAGE else "scan output"
        study_id = stack.submit(**tiny, kind=kind, how="hold")
    wait_until("the stage holds", once.exists)
    (stack.points / "at.hold").touch()
    return study_id


def _parts(stack: Stack, study_id: str) -> int:
    """How many parts of the study's work are kept."""
    mine = select(StageRow.saved_key).where(StageRow.study_id == study_id)
    with stack.database.read() as session:
        return session.scalar(select(func.count()).where(SavedPartRow.saved_key.in_(mine))) or 0


def _judge(stack: Stack, study_id: str, case: Case, ledger: Path, outcome: Outcome) -> None:
    with stack.database.read() as session:
        outcome.state = session.get_one(StudyRow, study_id).state
        stages = session.scalars(select(StageRow).where(StageRow.study_id == study_id)).all()
        outcome.attempts = max(stage.attempt for stage in stages)
        finished = session.scalars(
            select(EventRow).where(EventRow.study_id == study_id, EventRow.kind == "stage_succeeded")
        ).all()
        files = session.execute(
            select(ArtifactRow.name, func.count()).where(ArtifactRow.study_id == study_id).group_by(ArtifactRow.name)
        ).all()
    ends = Counter(f"{event.data['stage']} {event.data['shard']} {event.data['target']}" for event in finished)
    outcome.duplicated = [name for name, count in ends.items() if count > 1]
    outcome.duplicated += [name for name, count in files if count > 1]
    # The stage that was hit may be begun again, but not when its end was committed, and no other ever.
    hit = "check" if case.point in STATE_POINTS else "scan"
    allowed = {} if case.point in (IDLE, "after the commit", "committed, not told") else {hit: 2}
    done = ledger.read_text().splitlines() if ledger.exists() else []
    begun = Counter(line for line in done if line != "scan output")
    outcome.computed_again = [kind for kind, count in begun.items() if count > allowed.get(kind, 1)]
    if case.point == PARTS_SAVED:
        rows = Counter(ledger.with_name("rows").read_text().split())
        outcome.computed_again += [f"row {row}" for row, count in rows.items() if int(row) < HOLD_AT_ROW and count > 1]
    if case.fault == "SIGTERM worker" and outcome.attempts > 1:
        outcome.problem = "an orderly end was counted as a failed attempt"


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it died with another one


def orphans(stack: Stack) -> list[str]:
    """Command lines of processes that belong to this stack's stages."""
    listed = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if f"{stack.settings.data_folder.absolute()}/stages/" in line]


def run_stack(stack: Stack) -> Iterator[Stack]:
    """A fixture's body: the stack runs while it is used, and leaves no process behind."""
    try:
        stack.start()
        yield stack
        assert orphans(stack) == [], "processes of stages are left"
    finally:
        stack.close()


def check_case(stack: Stack, case: Case) -> None:
    """One cell of the matrix, held to everything that is promised."""
    assert case in matrix()
    outcome = run_case(stack, case)
    assert outcome.problem == "", outcome
    assert outcome.state == "succeeded", outcome
    assert outcome.duplicated == [], outcome
    assert outcome.computed_again == [], outcome
