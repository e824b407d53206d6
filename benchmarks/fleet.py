"""Fleet: 800 budgets on 20 models × 8 profiles, asked over HTTP and answered from what is stored.

Each model has been scanned and each device measured once; every target was solved once and left its front. The budgets
(five per target) go to a real API process on SQLite. Opponent in the same run: each budget solved anew as an integer
linear program, as a library without stores would. Losses are additive here, so that both can be exact. Beside the time
it prints what a look-up loses against those optima and what gap it promised.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.bars import at_most, finish, print_table
from search.allocation import AllocationProblem, Choice, Group, reachable_range
from search.allocation.limits import LATENCY, US_PER_MS
from search.allocation.question import Question
from search.budget import parse_budget
from search.planning.lookup import lookup_document
from service.blobs import Blobs
from service.settings import Settings
from service.store.database import Database
from service.store.migrate import migrate
from service.store.models import HardwareProfileRow, ModelRow, StageRow
from service.store.stages import create_study
from service.store.studies import now
from service.studies.plan import plan_study
from workers import claims
from workers.claims import OutputFile

MODELS, PROFILES, BUDGETS_EACH = 20, 8, 5
FEWEST_LAYERS, MOST_LAYERS = 20, 60
CLIENTS = 4
LIMIT_S = 10.0
ANY_GAP = 1e9
"""Every budget is looked up here, so that all of them show what a look-up promises and keeps."""
PRECISIONS = {  # loss, time and bytes of a weight relative to full precision's, as CPU runtimes have them
    "fp32": (0.0, 1.0, 4.0),
    "w8a8": (0.05, 0.35, 1.0),
    "w8a8-dynamic": (0.04, 0.45, 1.0),
    "w4a8": (0.6, 0.33, 0.52),
    "w4a16-g32": (0.4, 0.6, 0.56),
}


@dataclass(frozen=True)
class Asked:
    """One budget and what the store answered."""

    study: str
    target: int
    latency_ms: float
    loss: float
    gap: float


def model_losses(seed: int) -> list[dict[str, float]]:
    """Sensitivities of one model's layers by precision: a few orders of magnitude between layers."""
    random = np.random.default_rng(seed)
    layers = int(random.integers(FEWEST_LAYERS, MOST_LAYERS + 1))
    scales = np.exp(random.normal(0, 1.5, layers)) * 1e-3
    spread = np.exp(random.normal(0, 0.3, (layers, len(PRECISIONS))))
    return [
        {
            name: float(scale * loss * wobble)
            for (name, (loss, _, _)), wobble in zip(PRECISIONS.items(), row, strict=True)
        }
        for scale, row in zip(scales, spread, strict=True)
    ]


def question_of(losses: Sequence[dict[str, float]], model: int, profile: int) -> Question:
    """What one model costs on one device: the device's own speed of each precision, each layer its own weights."""
    weights = np.exp(np.random.default_rng(1000 + model).normal(0, 1, len(losses)))
    random = np.random.default_rng(10_000 + 100 * model + profile)
    speed = {name: time * float(np.exp(random.normal(0, 0.15))) for name, (_, time, _) in PRECISIONS.items()}
    groups = []
    for layer, (found, weight) in enumerate(zip(losses, weights, strict=True)):
        choices = [
            Choice(
                name,
                loss,
                {
                    "latency_us": 100.0 * weight * speed[name] * float(np.exp(random.normal(0, 0.05))),
                    "size_bytes": 1000.0 * weight * PRECISIONS[name][2],
                    "bops": 1e6 * weight,
                },
            )
            for name, loss in found.items()
        ]
        groups.append(Group(f"layer{layer}", (f"layer{layer}",), tuple(choices)))
    constants = {"latency_us": 50.0, "size_bytes": 4000.0, "bops": 0.0}
    problem = AllocationProblem(tuple(groups), {}, constants)
    question = Question({"kl": problem}, None)
    return Question({"kl": problem}, 1000.0 * question.full_precision()["latency_ms"])


def plans_document(question: Question) -> dict[str, Any]:
    """What a solve stage leaves of a target for the API to look up."""
    (problem,) = question.problems.values()
    return {
        "plans": [],
        "lookup": lookup_document(problem, LATENCY, ()),
        "front_metric": "kl",
        "front_resource": LATENCY,
        "full_precision": question.full_precision(),
    }


def fill_stores(settings: Settings, questions: dict[tuple[int, int], Question]) -> list[str]:
    """Studies that have been solved on every profile, one per model; their ids."""
    database, blobs = Database(settings.resolved_database_url), Blobs(settings.resolved_blob_url)
    migrate(database)
    slugs = [f"device-{profile}" for profile in range(PROFILES)]
    with database.write() as session:
        at = now(session)
        for slug in slugs:
            session.add(
                HardwareProfileRow(slug=slug, profile={"slug": slug}, profile_key=slug, created_at=at, announced_at=at)
            )
        for model in range(MODELS):
            files = [{"name": "model.onnx", "sha256": str(model), "size_bytes": 1}]
            fields = {"name": f"model {model}", "size_bytes": 1, "files": files, "created_at": at}
            session.add(ModelRow(id=f"model_{model}", sha256=str(model), **fields))
    studies = []
    for model in range(MODELS):
        point = {"batch": 1, "threads": 1, "dims": {}}
        targets = [
            {"hardware": slug, "operating_point": point, "budgets": {"latency_ms": "0.6x"}, "tolerance": None}
            for slug in slugs
        ]
        spec = {"model": f"model_{model}", "dataset": None, "targets": targets, "seed": 0, "options": {}}
        with database.write() as session:
            study = create_study(session, name=f"model {model}", spec=spec, stages=plan_study(spec), max_attempts=1)
        studies.append(study.id)
        for kind in ("check", "scan_shard", "scan", "measure", "solve"):
            _finish(database, blobs, settings, study.id, kind, {t: questions[model, t] for t in range(PROFILES)})
    database.close()
    return studies


def _finish(
    database: Database, blobs: Blobs, settings: Settings, study: str, kind: str, questions: dict[int, Question]
) -> None:
    with database.read() as session:
        rows = [
            (row.id, row.target)
            for row in session.query(StageRow).where(StageRow.study_id == study, StageRow.kind == kind)
        ]
    for stage_id, target in rows:
        outputs = []
        if kind == "solve":
            scratch = settings.data_folder / "scratch"
            scratch.mkdir(parents=True, exist_ok=True)
            (scratch / "plans_0.json").write_text(json.dumps(plans_document(questions[target])))
            questions[target].save(scratch / "question_0.npz")
            for name in ("plans_0.json", "question_0.npz"):
                blob = blobs.adopt(scratch / name)
                outputs.append(OutputFile(name, blob.sha256, blob.size_bytes))
        held = claims.claim(database, stage_id, worker_id="filler", lease_s=60)
        assert held is not None, f"{kind} of {study} is not queued"
        assert claims.succeed(database, held, outputs=outputs, summary={})


@contextlib.contextmanager
def api(settings: Settings) -> Iterator[str]:
    """A real API process; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, **settings.as_environment(), "BITWRIGHT_PORT": str(port)}
    log = (settings.data_folder / "api.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.server_cli", "api"], env=environment, stdout=log, stderr=log
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/healthz").status_code == 200:
                    break
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def reachable_budgets(question: Question) -> list[float]:
    """Milliseconds, spread over what the target can reach; below that the answer is a solve that says by how much."""
    (problem,) = question.problems.values()
    low, high = (each / US_PER_MS for each in reachable_range(problem, LATENCY))
    return [low + share * (high - low) for share in np.linspace(0.05, 0.9, BUDGETS_EACH).tolist()]


def ask_all(url: str, studies: Sequence[str], questions: dict[tuple[int, int], Question]) -> tuple[list[Asked], float]:
    """Every budget over HTTP by a few clients at once; what came back and the seconds it took."""
    jobs = [
        (studies[model], target, latency_ms)
        for (model, target), question in questions.items()
        for latency_ms in reachable_budgets(question)
    ]
    clients = [httpx.Client(base_url=url, timeout=60) for _ in range(CLIENTS)]

    def send(part: int) -> list[Asked]:
        found = []
        for study, target, latency_ms in jobs[part::CLIENTS]:
            answer = clients[part].post(
                f"/v1/studies/{study}/allocations",
                json={"target": target, "budgets": {"latency_ms": latency_ms}, "within": ANY_GAP},
            )
            assert answer.status_code == 201, answer.text
            result = answer.json()["result"]
            assert result["predicted"]["latency_ms"] <= latency_ms
            found.append(Asked(study, target, latency_ms, result["surrogate_loss"], result["gap"]))
        return found

    begun = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [one for part in pool.map(send, range(CLIENTS)) for one in part]
    seconds = time.perf_counter() - begun
    for client in clients:
        client.close()
    return asked, seconds


def solve_all(
    asked: Sequence[Asked], studies: Sequence[str], questions: dict[tuple[int, int], Question]
) -> tuple[list[float], float]:
    """The opponent: every budget as an integer linear program of its own; the optima and the seconds they took."""
    model_of = {study: model for model, study in enumerate(studies)}
    optima = []
    begun = time.perf_counter()
    for number, one in enumerate(asked):
        if number % 100 == 0:
            print(f"solve {number} of {len(asked)}", file=sys.stderr)
        question = questions[model_of[one.study], one.target]
        found = question.answer([parse_budget("latency_ms", one.latency_ms)], gap=0.0)
        assert found.surrogate_loss is not None
        optima.append(found.surrogate_loss)
    return optima, time.perf_counter() - begun


def main() -> int:
    losses = [model_losses(model) for model in range(MODELS)]
    questions = {
        (model, profile): question_of(losses[model], model, profile)
        for model in range(MODELS)
        for profile in range(PROFILES)
    }
    with tempfile.TemporaryDirectory(prefix="bitwright-fleet-") as folder:
        settings = Settings(data_folder=Path(folder))
        print("fill the stores", file=sys.stderr)
        studies = fill_stores(settings, questions)
        with api(settings) as url:
            asked, seconds = ask_all(url, studies, questions)
    optima, opponent_s = solve_all(asked, studies, questions)
    excess = [one.loss / best - 1 if best > 0 else 0.0 for one, best in zip(asked, optima, strict=True)]
    broken = sum(one.loss > best * (1 + one.gap) * (1 + 1e-6) for one, best in zip(asked, optima, strict=True))
    print_table(
        ("answered by", "budgets", "seconds", "ms each", "loss above the optimum, median", "at most"),
        [
            (
                "the API, from stores",
                len(asked),
                seconds,
                1000 * seconds / len(asked),
                float(np.median(excess)),
                max(excess),
            ),
            ("PuLP, each solved anew", len(asked), opponent_s, 1000 * opponent_s / len(asked), 0.0, 0.0),
        ],
    )
    gaps = [one.gap for one in asked]
    close = float(np.mean([gap <= 0.1 for gap in gaps]))
    print(f"promised gap: median {np.median(gaps):.3f}, {close:.0%} at most 0.1; promises broken: {broken}")
    return finish(
        "fleet",
        [
            at_most("800 budgets answered over HTTP", seconds, "s", LIMIT_S),
            at_most("answers outside their promised gap", broken, "", 0),
        ],
        opponent_s=opponent_s,
        digest=hashlib.sha256(json.dumps(excess).encode()).hexdigest()[:12],
    )


if __name__ == "__main__":
    sys.exit(main())
