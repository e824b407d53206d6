"""The Celery application as both sides configure it: the API that sends and the workers that receive."""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

from service.settings import Settings

RUN_STAGE = "workers.tasks.run_stage"
# Redis hands an unacknowledged message out again after the visibility timeout. Stages outlast any short one, and a
# second copy finds its stage taken; what a dead worker held is announced again by the outbox, not by this.
REDIS_OPTIONS: dict[str, Any] = {
    "visibility_timeout": 12 * 3600,
    "socket_connect_timeout": 5,
    "socket_timeout": 30,
    "socket_keepalive": True,
    "health_check_interval": 10,
    "retry_on_timeout": True,
}
STAGE_GRACE_S = 600.0


def make_celery(settings: Settings) -> Celery:
    """A Celery application on the settings' broker. Messages carry one stage id; the database holds the truth.

    A lost message is sent again by the outbox and a doubled one finds the stage taken, so Celery's own
    redelivery is switched off: with it, a stage that kills its worker would be handed round for ever.
    """
    TRANSPORT_ALIASES["filesystem"] = "service.queue.transport:Transport"
    TRANSPORT_ALIASES["redis"] = TRANSPORT_ALIASES["rediss"] = "service.queue.redis_transport:Transport"
    app = Celery("bitwright", broker=settings.resolved_broker_url)
    options: dict[str, Any]
    if settings.resolved_broker_url.startswith("filesystem://"):
        settings.broker_folder.mkdir(parents=True, exist_ok=True)
        options = {"folder": str(settings.broker_folder), "polling_interval": 0.2}
    else:
        options = REDIS_OPTIONS
    app.conf.update(
        broker_transport_options=options,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_acks_late=True,
        task_reject_on_worker_lost=False,
        task_ignore_result=True,
        task_default_queue="check",
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_max_tasks_per_child=50,
        worker_lost_wait=1.0,  # a killed pool process is noticed at once; waiting for its result blocks the slot
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        # Last resort against a supervisor that hangs; a stage has its own, shorter wall limit.
        task_time_limit=settings.stage_wall_s + settings.outage_s + STAGE_GRACE_S,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0.1},
    )
    return app
