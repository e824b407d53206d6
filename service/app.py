"""The API application: routers, error handlers and the gateway around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.openapi.utils import get_openapi

from service import artifacts, health
from service.blobs import Blobs
from service.dashboard.router import install_dashboard
from service.datasets.router import router as datasets
from service.dependencies import Parts, check_json_text
from service.errors import declare_problems, install_error_handlers
from service.gateway import Gateway
from service.hardware_profiles.router import router as hardware_profiles
from service.hardware_profiles.tables_router import router as latency_tables
from service.keys.access import install_access, scoped
from service.keys.pages import router as login_pages
from service.keys.scopes import Noun
from service.metrics import install_metrics
from service.models.router import router as models
from service.queue.celery_settings import make_celery
from service.queue.outbox import Sender, celery_sender
from service.settings import Settings, process_settings
from service.store.database import Database
from service.studies.compare import router as compare
from service.studies.router import router as studies
from service.studies.unchanged import UnchangedPolls
from service.version import VERSION
from service.workers.router import router as workers

# The noun is what a key's scopes name: reading asks for <noun>:read, every other method for <noun>:write.
ROUTERS: tuple[tuple[Noun, APIRouter], ...] = (
    ("models", models),
    ("datasets", datasets),
    ("hardware", hardware_profiles),
    ("hardware", latency_tables),
    ("server", workers),
    ("studies", studies),
    ("studies", compare),
    ("studies", artifacts.router),
)


def create_app(settings: Settings | None = None, *, send: Sender | None = None) -> FastAPI:
    """The application on these settings; `send` replaces the Celery producer."""
    settings = settings or process_settings()
    database = Database(
        settings.resolved_database_url, statement_s=settings.statement_limit_s, lock_s=settings.lock_limit_s
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        database.close()

    app = FastAPI(
        title="Bitwright",
        version=VERSION,
        summary="Hardware-aware mixed-precision search with measured verdicts",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.parts = Parts(
        settings=settings,
        database=database,
        blobs=Blobs(settings.resolved_blob_url),
        send=send or celery_sender(make_celery(settings)),
    )
    for noun, router in ROUTERS:
        app.include_router(router, dependencies=[scoped(noun), Depends(check_json_text)])
    app.include_router(health.router)
    app.include_router(login_pages)
    install_dashboard(app)
    install_access(app)
    install_error_handlers(app)
    app.add_middleware(UnchangedPolls, database=database, silent_s=settings.worker_silent_s)
    install_metrics(app, settings, database)
    app.add_middleware(Gateway, settings=settings)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = declare_problems(
                get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            )
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app
