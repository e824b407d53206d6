"""Hardware of a worker: asked of the kernels package in a process of its own, then announced to the database."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from service.ids import new_id
from service.settings import Settings
from service.store.database import Database
from service.store.fleet import announce_worker, worker_gone, worker_seen
from service.studies.plan import COMMON_QUEUES, KINDS
from service.version import VERSION
from workers.forking import no_fork_while_open
from workers.sandbox import isolation_level
from workers.supervisor import CODE_FOLDER

log = logging.getLogger(__name__)
PROBE_LIMIT_S = 120
AUTO, GPU_HERE = "auto", "cuda-local"
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def wanted_hardware(asked: str | None, configured: tuple[str, ...]) -> tuple[str, ...]:
    """The slugs to probe: `auto` is what is configured and the GPU of this machine, a list by comma itself."""
    if asked is None:
        return configured
    if asked == AUTO:
        return (*configured, GPU_HERE)
    return tuple(slug.strip() for slug in asked.split(",") if slug.strip())


def has_gpu(profiles: list[dict[str, Any]]) -> bool:
    """True when one of the profiles is a GPU's."""
    return any(profile.get("device", {}).get("kind") == "gpu" for profile in profiles)


def probe_profiles(kernels: str, slugs: Iterable[str]) -> list[dict[str, Any]]:
    """The profiles of those slugs this machine has, asked of `python -m <kernels> profile --json --hardware <slug>`.

    A slug the package cannot name here is left out, and the log says why.
    """
    environment = {**os.environ, "PYTHONPATH": str(CODE_FOLDER)}
    profiles = []
    for slug in slugs:
        try:
            probe = subprocess.run(
                [sys.executable, "-m", kernels, "profile", "--json", "--hardware", slug],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=environment,
                timeout=PROBE_LIMIT_S,
                check=True,
            )
            profiles.append(read_profile(probe.stdout))
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode("utf-8", "replace")[-1000:]
            log.warning("hardware %s is not announced: %s", slug, said)
        except (subprocess.TimeoutExpired, ValueError) as error:
            log.warning("hardware %s is not announced: %s", slug, error)
    return profiles


def read_profile(output: bytes) -> dict[str, Any]:
    """The profile in the probe's output: a JSON object with a slug. Raises `ValueError`."""
    profile = json.loads(output)
    if not isinstance(profile, dict) or not _SLUG.fullmatch(str(profile.get("slug", ""))):
        raise ValueError(f"not a hardware profile: {str(profile)[:200]}")
    return profile


def queues_for(profiles: list[dict[str, Any]]) -> list[str]:
    """The queues of a worker with these profiles: the common ones and those of its own hardware."""
    own = [kind.queue.format(hardware=profile["slug"]) for profile in profiles for kind in KINDS if kind.on_device]
    return list(dict.fromkeys([*COMMON_QUEUES, *own]))


@dataclass(frozen=True)
class Announcement:
    """What a worker says of itself."""

    worker_id: str
    host: str
    queues: tuple[str, ...]
    profiles: tuple[dict[str, Any], ...]
    sandbox: str

    @classmethod
    def of_this_machine(cls, queues: list[str], profiles: list[dict[str, Any]], sandbox: str = "auto") -> Announcement:
        level = isolation_level(sandbox)
        return cls(new_id("worker"), socket.gethostname(), tuple(queues), tuple(profiles), level)

    def enter(self, database: Database) -> None:
        with database.write() as session:
            announce_worker(
                session,
                worker_id=self.worker_id,
                host=self.host,
                version=VERSION,
                queues=self.queues,
                sandbox=self.sandbox,
                profiles=self.profiles,
            )


class Presence(threading.Thread):
    """Keeps a worker's row alive until told to end; a database that is away is tried again at the next beat."""

    def __init__(self, settings: Settings, announcement: Announcement) -> None:
        super().__init__(name="presence", daemon=True)
        self._database = Database(settings.resolved_database_url)
        self._every_s = settings.worker_silent_s / 6
        self._announcement = announcement
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(self._every_s):
            try:
                with no_fork_while_open(self._database):
                    self._renew()
            except SQLAlchemyError as error:
                log.warning("could not renew this worker's presence: %s", error)

    def _renew(self) -> None:
        with self._database.write() as session:
            known = worker_seen(session, self._announcement.worker_id)
        if not known:
            self._announcement.enter(self._database)

    def end(self) -> None:
        """Stop, and take the worker's row away."""
        self._end.set()
        self.join()
        try:
            with self._database.write() as session:
                worker_gone(session, self._announcement.worker_id)
        except SQLAlchemyError as error:
            log.warning("could not sign off; the row ages out: %s", error)
        self._database.close()
