"""The client: one class over the REST interface, synchronous and typed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitwright.connection import RETRIES, Connection, retry_after_s
from bitwright.errors import WaitTimeout
from bitwright.records import Allocation, Artifact, Study, verdict_of
from bitwright.transfer import fetch, opened

DEFAULT_URL = "http://127.0.0.1:8300"
POLL_WAIT_S = 20.0
POLL_PATIENCE_S = 180.0
FIGURES = ("latency_ms", "size_bytes", "loss", "accuracy")
Budgets = Mapping[str, float | str | Mapping[str, float]]


class Client:
    """Talks to one server.

    `url` defaults to the variable `BITWRIGHT_URL`, then to this machine; `key` to `BITWRIGHT_API_KEY`, then to none.
    What fails in a way that passes (no connection, 429, 502–504) is tried again with growing, jittered pauses, as
    often as `retries`; a POST is then the same POST to the server. Everything raises `BitwrightError`s.
    """

    def __init__(
        self, url: str | None = None, *, key: str | None = None, timeout_s: float = 60.0, retries: int = RETRIES
    ) -> None:
        self.url = (url or os.environ.get("BITWRIGHT_URL") or DEFAULT_URL).rstrip("/")
        key = key or os.environ.get("BITWRIGHT_API_KEY") or None
        self._to = Connection(self.url, key=key, timeout_s=timeout_s, retries=retries)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._to.close()

    def upload_model(self, path: str | Path, external_data: Sequence[str | Path] = ()) -> str:
        """Upload an ONNX file, with its external data files if it has any, or a zip of both; returns the model's id."""
        return self._upload("/v1/models", [("file", Path(path)), *(("external_data", Path(p)) for p in external_data)])

    def upload_dataset(self, path: str | Path) -> str:
        """Upload a `.npz` or `.safetensors` file; returns the dataset's id."""
        return self._upload("/v1/datasets", [("file", Path(path))])

    def hardware_profiles(self) -> list[dict[str, Any]]:
        """The hardware the server's workers announced."""
        return list(self._json("/v1/hardware-profiles")["items"])

    def workers(self) -> list[dict[str, Any]]:
        """The processes that take stages, and what they do now."""
        return list(self._json("/v1/workers")["items"])

    def submit(
        self,
        model: str | Path,
        *,
        data: str | Path | None = None,
        hardware: str | Sequence[str] = "cpu-local",
        budgets: Budgets | None = None,
        tolerance: Mapping[str, float] | None = None,
        batch: int | None = None,
        threads: int = 1,
        dims: Mapping[str, int] | None = None,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        evaluator: Mapping[str, Any] | None = None,
        name: str = "",
        external_data: Sequence[str | Path] = (),
    ) -> Study:
        """Upload what is not there yet and start a study for one or several hardware profiles.

        `model` and `data` are paths, or ids of earlier uploads (`model_…`, `dataset_…`). `budgets` maps
        `latency_ms`, `size_bytes`, `bops` or `peak_memory_bytes` to a number, `"0.6x"`, or `{"relative": 0.5}`.
        Without `batch` the model is served at the one it is exported for (1 where that is open).
        Instead of budgets, `tolerance` is `{"accuracy_drop": 0.005}` or `{"loss": 0.01}`. With `evaluator`, as
        `{"metric": "mAP"}`, the study waits for `post_evaluations` and judges by them.
        """
        model_id = str(model) if str(model).startswith("model_") else self.upload_model(model, external_data)
        dataset_id = None
        if data is not None:
            dataset_id = str(data) if str(data).startswith("dataset_") else self.upload_dataset(data)
        point = _point(batch, threads, dims)
        slugs = [hardware] if isinstance(hardware, str) else list(hardware)
        body = {
            "model": model_id,
            "dataset": dataset_id,
            "targets": [
                {
                    "hardware": slug,
                    "operating_point": point,
                    "budgets": dict(budgets or {}),
                    "tolerance": dict(tolerance) if tolerance else None,
                }
                for slug in slugs
            ],
            "seed": seed,
            "options": dict(options or {}),
            "name": name,
            **({"evaluator": dict(evaluator)} if evaluator else {}),
        }
        return _study(self._to.post("/v1/studies", json=body))

    def study(self, study_id: str) -> Study:
        """The study now."""
        return _study(self._to.get(f"/v1/studies/{study_id}"))

    def studies(
        self, *, state: str | None = None, model: str | None = None, hardware: str | None = None
    ) -> Iterator[Study]:
        """All studies that match, newest first, fetched page by page as they are asked for."""
        asked = {"state": state, "model": model, "hardware": hardware, "limit": "100"}
        params = {name: value for name, value in asked.items() if value is not None}
        while True:
            page = self._json("/v1/studies", params=params)
            yield from (Study.from_json(item) for item in page["items"])
            if page.get("next_cursor") is None:
                return
            params["cursor"] = page["next_cursor"]

    def changes(self, study_id: str, *, timeout_s: float | None = None) -> Iterator[Study]:
        """The study now and after every change, the last one terminal. Raises `WaitTimeout`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        study = self.study(study_id)
        yield study
        while not study.is_terminal:
            left_s = POLL_PATIENCE_S if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                raise WaitTimeout(f"study {study_id} is {study.state} after {timeout_s:g} s; it goes on")
            asked_at = time.monotonic()
            held_s = min(left_s, POLL_WAIT_S)
            response = self._to.get(
                f"/v1/studies/{study_id}",
                params={"wait": f"{held_s:.3f}"},
                headers={"If-None-Match": study.etag} if study.etag else {},
                patience_s=min(left_s, POLL_PATIENCE_S),
            )
            if response.status_code != 304:
                study = _study(response)
                yield study
            else:
                # A server that holds polls has used up the wait; one that does not says when to come back.
                early_s = held_s - (time.monotonic() - asked_at)
                pause_s = min(early_s, retry_after_s(response) or 0.0)
                time.sleep(max(0.0, pause_s))

    def wait(
        self, study_id: str, *, timeout_s: float | None = None, on_change: Callable[[Study], None] | None = None
    ) -> Study:
        """Wait for the end of a study. Raises `WaitTimeout` when it takes longer than `timeout_s`."""
        study: Study | None = None
        for study in self.changes(study_id, timeout_s=timeout_s):
            if on_change is not None:
                on_change(study)
        assert study is not None
        return study

    def cancel(self, study_id: str) -> Study:
        """Ask a study to stop."""
        return _study(self._to.post(f"/v1/studies/{study_id}/cancel"))

    def retry(self, study_id: str) -> Study:
        """Try a failed or cancelled study again, as a new one; what it finished or saved is not computed again."""
        return _study(self._to.post(f"/v1/studies/{study_id}/retry"))

    def clone(self, study_id: str, **changes: Any) -> Study:
        """A new study that asks what this one asked, but for `targets`, `seed`, `options`, `evaluator` or `name`."""
        return _study(self._to.post(f"/v1/studies/{study_id}/clone", json=changes))

    def allocate(
        self,
        study_id: str,
        budgets: Budgets,
        *,
        target: int = 0,
        hardware: str | None = None,
        batch: int | None = None,
        threads: int = 1,
        dims: Mapping[str, int] | None = None,
        metric: str | None = None,
        within: float | None = None,
        exact: bool = False,
        timeout_s: float | None = None,
    ) -> Allocation:
        """The allocation under other budgets, on one of the study's targets or on another `hardware`; no new scan.

        A budget that the stored front answers `within` a relative gap (the server's default when None) is answered at
        once, others are solved from what is stored; `exact` always solves. What it loses and costs is predicted:
        nothing is built. Raises `WaitTimeout`.
        """
        point = _point(batch, threads, dims)
        place = target if hardware is None else {"hardware": hardware, "operating_point": point}
        body: dict[str, Any] = {"target": place, "budgets": dict(budgets), "metric": metric, "exact": exact}
        if within is not None:
            body["within"] = within
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        params = {"wait": f"{min(POLL_WAIT_S, timeout_s or POLL_WAIT_S):.3f}"}
        response = self._to.post(f"/v1/studies/{study_id}/allocations", json=body, params=params)
        while not (found := Allocation.from_json(response.json())).is_terminal:
            left_s = POLL_WAIT_S if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                raise WaitTimeout(f"allocation {found.id} is {found.state} after {timeout_s:g} s; it goes on")
            response = self._to.get(
                f"/v1/studies/{study_id}/allocations/{found.id}",
                params={"wait": f"{min(left_s, POLL_WAIT_S):.3f}"},
                patience_s=POLL_PATIENCE_S if deadline is None else max(left_s, 1.0),
            )
        return found

    def allocations(self, study_id: str) -> dict[str, Any]:
        """`items`: allocations asked later, newest first; `planned`: those the study solved before it built any."""
        page = self._json(f"/v1/studies/{study_id}/allocations", params={"limit": 200})
        return {"items": page["items"], "planned": page["planned"]}

    def evaluations(self, study_id: str, target: int = 0) -> dict[str, Any]:
        """The finalists that wait for your evaluator, with the files to download, and what is still missing."""
        return dict(self._json(f"/v1/studies/{study_id}/evaluations", params={"target": target}))

    def post_evaluations(
        self, study_id: str, results: Mapping[str, Mapping[str, float]], target: int = 0
    ) -> dict[str, Any]:
        """Post what your evaluator measured: finalist → metric → value. Once all are there the verdict is made."""
        listed = [{"finalist": name, "metrics": dict(metrics)} for name, metrics in results.items()]
        body = {"target": target, "results": listed}
        return dict(self._to.post(f"/v1/studies/{study_id}/evaluations", json=body).json())

    def events(self, study_id: str, after: int = 0) -> Iterator[dict[str, Any]]:
        """What happened to a study, oldest first; `after` is the last `seq` already seen."""
        while page := self._json(f"/v1/studies/{study_id}/events", params={"after": after})["items"]:
            yield from page
            after = page[-1]["seq"]

    def front(self, study_id: str, target: int = 0) -> dict[str, Any]:
        """One target's `front` (predicted cost and loss) and `assemblies` (built and run). Raises `Conflict` before."""
        (found,) = self._json(f"/v1/studies/{study_id}/front", params={"target": target})
        return dict(found)

    def report(self, study_id: str, target: int = 0) -> dict[str, Any]:
        """The report of one target. Raises `Conflict` (`not_ready`) before the study has one."""
        return dict(self._json(f"/v1/studies/{study_id}/report", params={"target": target}))

    def log(self, study_id: str, *, stage: str | None = None, lines: int = 40) -> list[dict[str, Any]]:
        """The last `lines` each stage printed, or those of one kind: dicts with `stage`, `target`, `lines`, `is_cut`.

        A running stage tells them with its beats.
        """
        params = {"lines": lines, **({"stage": stage} if stage is not None else {})}
        return list(self._json(f"/v1/studies/{study_id}/log", params=params)["items"])

    def compare(self, study_ids: Sequence[str]) -> list[dict[str, Any]]:
        """One row per target of 2 to 6 studies: verdict and the chosen assembly's figures; None for what is unknown."""
        items = self._json("/v1/compare", params={"studies": list(study_ids)})["items"]
        return [
            {
                "study": one["study"],
                "name": one["name"],
                "target": one["position"],
                "hardware": one["target"]["hardware"],
                "verdict": verdict_of(one["verdict"] or {}) or one["state"],
                "chosen": (one["verdict"] or {}).get("chosen"),
                **{name: ((one["figures"] or {}).get(name) or {}).get("value") for name in FIGURES},
            }
            for one in items
        ]

    def artifacts(self, study_id: str) -> list[Artifact]:
        """The files a study made."""
        return [Artifact.from_json(item) for item in self._json(f"/v1/studies/{study_id}/artifacts")["items"]]

    def download(self, study_id: str, folder: str | Path, target: int | None = None) -> list[Path]:
        """Download a study's files (of one target, or all) into `folder`, each checked by its sha256.

        With several targets each gets a folder `target_<n>`. What broke off is gone on with, a file already there
        whole is kept. Raises `DamagedDownload`; a damaged file never appears under its name.
        """
        artifacts = [one for one in self.artifacts(study_id) if target is None or one.target == target]
        several = len({one.target for one in artifacts}) > 1
        return [fetch(self._to, one, Path(folder) / (f"target_{one.target}" if several else "")) for one in artifacts]

    def _upload(self, address: str, parts: list[tuple[str, Path]]) -> str:
        return str(self._to.post(address, make_files=opened(parts), timeout=None).json()["id"])

    def _json(self, address: str, *, params: Mapping[str, Any] | None = None) -> Any:
        return self._to.get(address, params=params).json()


def _point(batch: int | None, threads: int, dims: Mapping[str, int] | None) -> dict[str, Any]:
    return {"batch": batch, "threads": threads, "dims": dict(dims or {})}


def _study(response: Any) -> Study:
    return Study.from_json(response.json(), response.headers.get("etag", ""))
