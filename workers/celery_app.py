"""The Celery application of a worker process."""

from __future__ import annotations

from service.queue.celery_settings import make_celery
from service.settings import process_settings

celery_app = make_celery(process_settings())
celery_app.conf.imports = ("workers.tasks",)
