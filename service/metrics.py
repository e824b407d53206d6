"""Metrics for Prometheus: requests counted in this process, and the state of queues and workers read at the scrape.

What the database knows (queues, leases, stages, workers) is asked of it when somebody scrapes, so any replica tells
the same, nothing is lost when a process restarts, and workers need no port of their own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import case, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.lifecycle import StageState, StudyState
from service.logs import log_ids
from service.settings import Settings
from service.store.database import Database, database_now
from service.store.models import EventRow, StageRow, StudyRow, WorkerRow

log = logging.getLogger("service.requests")
router = APIRouter(include_in_schema=False)
REQUEST_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
STAGE_BUCKETS_S = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0)
UNROUTED = "(no route)"
WORKER_LOST = "worker_lost"


class Metrics:
    """The registry of one API process."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "bitwright_http_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self.request_seconds = Histogram(
            "bitwright_http_request_seconds",
            "Time from a request to the end of its answer, held polls included.",
            ("method", "route"),
            buckets=REQUEST_BUCKETS_S,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.registry.register(_Stored(database, settings.worker_silent_s))


class _Stored(Collector):
    """What the database knows, as metrics. A database that is away gives `bitwright_database_up 0` and nothing more."""

    def __init__(self, database: Database, silent_s: float) -> None:
        self._database = database
        self._silent_s = silent_s

    def describe(self) -> Iterable[Metric]:
        return ()  # registering must not touch the database

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("bitwright_database_up", "Whether the database answered this scrape.")
        try:
            with self._database.read() as session:
                found = [
                    *_queues(session),
                    *_workers(session, self._silent_s),
                    *_studies(session),
                    _leases(session),
                    _stage_seconds(session),
                ]
        except SQLAlchemyError as error:
            logging.getLogger(__name__).warning("the database is away: %s", error)
            found = []
        up.add_metric([], float(bool(found)))
        yield up
        yield from found


def _queues(session: Session) -> list[Metric]:
    depth = GaugeMetricFamily("bitwright_queue_depth", "Stages that could run now.", labels=["queue"])
    oldest = GaugeMetricFamily(
        "bitwright_oldest_queued_seconds", "How long the longest waiting of them waits.", labels=["queue"]
    )
    waits = database_now() - func.min(StageRow.not_before)
    queued = select(StageRow.queue, func.count(), waits).where(StageRow.state == StageState.QUEUED.value)
    for queue, count, wait_s in session.execute(queued.group_by(StageRow.queue)):
        depth.add_metric([queue], count)
        oldest.add_metric([queue], max(0.0, wait_s))
    running = GaugeMetricFamily("bitwright_stages_running", "Stages a worker holds.", labels=["kind"])
    held = select(StageRow.kind, func.count()).where(StageRow.state == StageState.RUNNING.value)
    for kind, count in session.execute(held.group_by(StageRow.kind)):
        running.add_metric([kind], count)
    return [depth, oldest, running]


def _workers(session: Session, silent_s: float) -> list[Metric]:
    up = GaugeMetricFamily(
        "bitwright_worker_up", "1 while the worker is heard of.", labels=["worker", "host", "version"]
    )
    takers = GaugeMetricFamily("bitwright_queue_workers", "Live workers that take from the queue.", labels=["queue"])
    alive: dict[str, int] = {}
    for row, silence_s in session.execute(select(WorkerRow, database_now() - WorkerRow.seen_at)):
        is_live = silence_s < silent_s
        up.add_metric([row.id, row.host, row.version], float(is_live))
        for queue in row.queues:
            alive[queue] = alive.get(queue, 0) + is_live
    for queue, count in sorted(alive.items()):
        takers.add_metric([queue], count)
    return [up, takers]


def _studies(session: Session) -> list[Metric]:
    family = GaugeMetricFamily("bitwright_studies", "Studies in each state.", labels=["state"])
    counts = {
        state: count
        for state, count in session.execute(
            select(StudyRow.state, func.count()).where(StudyRow.parent_id.is_(None)).group_by(StudyRow.state)
        )
    }
    for state in StudyState:
        family.add_metric([state.value], counts.get(state.value, 0))
    return [family]


def _leases(session: Session) -> Metric:
    family = CounterMetricFamily("bitwright_lease_expired", "Stages taken back from silent workers.")
    lost = select(func.count()).where(EventRow.kind == "attempt_lost", EventRow.data["code"].as_string() == WORKER_LOST)
    family.add_metric([], session.execute(lost).scalar_one())
    return family


def _stage_seconds(session: Session) -> Metric:
    """Computed stages only: a reused one takes no time and would hide how long the others take."""
    family = HistogramMetricFamily(
        "bitwright_stage_seconds", "Run time of stages that were computed.", labels=["kind", "state"]
    )
    seconds = StageRow.finished_at - StageRow.started_at
    within = [func.sum(case((seconds <= bound, 1), else_=0)) for bound in STAGE_BUCKETS_S]
    computed = (
        select(StageRow.kind, StageRow.state, func.count(), func.sum(seconds), *within)
        .where(StageRow.finished_at.is_not(None), StageRow.started_at.is_not(None), StageRow.reused_from.is_(None))
        .group_by(StageRow.kind, StageRow.state)
    )
    for kind, state, count, total_s, *buckets in session.execute(computed):
        family.add_metric([kind, state], _buckets(buckets, count), float(total_s))
    return family


def _buckets(counts: Sequence[int], total: int) -> list[tuple[str, float]]:
    named = [(str(bound), float(count)) for bound, count in zip(STAGE_BUCKETS_S, counts, strict=True)]
    return [*named, ("+Inf", float(total))]


class RequestMeter:
    """ASGI middleware just inside the gateway: counts and times every request, and logs it with its ids."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with log_ids(request_id=scope.get("state", {}).get("request_id", "")):
            try:
                await self._app(scope, receive, send_and_note)
            finally:
                self._note(scope, status, time.perf_counter() - begun)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        method, route = scope["method"], _route(scope)
        children = self._children.get((method, route, status))
        if children is None:  # finding them by their labels costs as much as all the rest here
            requests = self._metrics.requests.labels(method, route, status)
            children = requests, self._metrics.request_seconds.labels(method, route)
            self._children[method, route, status] = children
        children[0].inc()
        children[1].observe(seconds)
        # Polls that find nothing new and scrapes would drown the rest.
        level = logging.DEBUG if status == 304 or route in ("/metrics", "/healthz") else logging.INFO
        if log.isEnabledFor(level):
            told = {"method": method, "route": route, "status": status, "ms": round(1000 * seconds, 2)}
            study = scope.get("path_params", {}).get("study_id")
            if study is not None:
                told["study_id"] = study
            log.log(level, "%s %s %d", method, scope["path"], status, extra=told)


def _route(scope: Scope) -> str:
    """The template of the route, so that ids make no labels; static files are one route."""
    path = getattr(scope.get("route"), "path", None)
    return path or ("/static" if scope["path"].startswith("/static/") else UNROUTED)


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """All metrics in Prometheus' text format."""
    registry = request.app.state.metrics.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def install_metrics(app: FastAPI, settings: Settings, database: Database) -> None:
    """Measure the application's requests and serve `/metrics`; to be called before the gateway is put around it."""
    app.state.metrics = Metrics(settings, database)
    app.include_router(router)
    app.add_middleware(RequestMeter, metrics=app.state.metrics)
