"""The client: one class over the REST interface, synchronous and typed."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bitwright.errors import BitwrightError, DamagedDownload, ServerUnreachable, WaitTimeout, api_error
from bitwright.records import Artifact, Study

DEFAULT_URL = "http://127.0.0.1:8300"
RETRIES = 5
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
POLL_WAIT_S = 20.0
_RETRIED_STATUSES = frozenset({429, 502, 503, 504})


class Client:
    """Talks to one server. `url` defaults to the `BITWRIGHT_URL` variable, then to this machine.

    Requests that change nothing, or carry an idempotency key, are tried again with growing pauses when the
    server is briefly away. Everything raises `BitwrightError`s.
    """

    def __init__(self, url: str | None = None, *, timeout_s: float = 60.0, retries: int = RETRIES) -> None:
        self.url = (url or os.environ.get("BITWRIGHT_URL") or DEFAULT_URL).rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s)
        self._retries = retries

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def upload_model(self, path: str | Path, external_data: Sequence[str | Path] = ()) -> str:
        """Upload an ONNX file, with its external data files if it has any; returns the model's id."""
        return self._upload("/v1/models", [("file", Path(path)), *(("external_data", Path(p)) for p in external_data)])

    def upload_dataset(self, path: str | Path) -> str:
        """Upload a `.npz` or `.safetensors` file; returns the dataset's id."""
        return self._upload("/v1/datasets", [("file", Path(path))])

    def hardware_profiles(self) -> list[dict[str, Any]]:
        """The hardware the server's workers announced."""
        return list(self._json("GET", "/v1/hardware-profiles")["items"])

    def submit(
        self,
        model: str | Path,
        *,
        data: str | Path | None = None,
        hardware: str | Sequence[str] = "cpu-local",
        budgets: Mapping[str, float | str | Mapping[str, float]] | None = None,
        tolerance: Mapping[str, float] | None = None,
        batch: int = 1,
        threads: int = 1,
        dims: Mapping[str, int] | None = None,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        name: str = "",
        external_data: Sequence[str | Path] = (),
    ) -> Study:
        """Upload what is not there yet and start a study for one or several hardware profiles.

        `model` and `data` are paths, or ids of earlier uploads (`model_…`, `dataset_…`). `budgets` maps
        `latency_ms`, `size_bytes`, `bops` or `peak_memory_bytes` to a number, `"0.6x"`, or `{"relative": 0.5}`.
        Instead of budgets, `tolerance` is `{"accuracy_drop": 0.005}` or `{"loss": 0.01}`.
        """
        model_id = str(model) if str(model).startswith("model_") else self.upload_model(model, external_data)
        dataset_id = None
        if data is not None:
            dataset_id = str(data) if str(data).startswith("dataset_") else self.upload_dataset(data)
        point = {"batch": batch, "threads": threads, "dims": dict(dims or {})}
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
        }
        response = self._send(
            "POST", "/v1/studies", json=body, headers={"Idempotency-Key": secrets.token_hex(16)}, retry=True
        )
        return Study.from_json(response.json(), response.headers.get("etag", ""))

    def study(self, study_id: str) -> Study:
        """The study now."""
        response = self._send("GET", f"/v1/studies/{study_id}", retry=True)
        return Study.from_json(response.json(), response.headers.get("etag", ""))

    def changes(self, study_id: str, *, timeout_s: float | None = None) -> Iterator[Study]:
        """The study now and after every change, the last one terminal. Raises `WaitTimeout`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        study = self.study(study_id)
        yield study
        while not study.is_terminal:
            left_s = POLL_WAIT_S if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                raise WaitTimeout(f"study {study_id} is {study.state} after {timeout_s:g} s; it goes on")
            response = self._send(
                "GET",
                f"/v1/studies/{study_id}",
                params={"wait": f"{min(left_s, POLL_WAIT_S):.3f}"},
                headers={"If-None-Match": study.etag} if study.etag else {},
                retry=True,
            )
            if response.status_code != 304:
                study = Study.from_json(response.json(), response.headers.get("etag", ""))
                yield study

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
        return Study.from_json(self._send("POST", f"/v1/studies/{study_id}/cancel", retry=True).json())

    def events(self, study_id: str) -> list[dict[str, Any]]:
        """What happened to a study, oldest first."""
        found: list[dict[str, Any]] = []
        while page := self._json(
            "GET", f"/v1/studies/{study_id}/events", params={"after": found[-1]["seq"] if found else 0}
        )["items"]:
            found += page
        return found

    def front(self, study_id: str, target: int = 0) -> dict[str, Any]:
        """One target's `front` (predicted cost and loss) and `assemblies` (built and run). Raises `Conflict` before."""
        (found,) = self._json("GET", f"/v1/studies/{study_id}/front", params={"target": target})
        return dict(found)

    def report(self, study_id: str, target: int = 0) -> dict[str, Any]:
        """The report of one target. Raises `Conflict` (`not_ready`) before the study has one."""
        return dict(self._json("GET", f"/v1/studies/{study_id}/report", params={"target": target}))

    def artifacts(self, study_id: str) -> list[Artifact]:
        """The files a study made."""
        return [Artifact.from_json(item) for item in self._json("GET", f"/v1/studies/{study_id}/artifacts")["items"]]

    def download(self, study_id: str, folder: str | Path, target: int | None = None) -> list[Path]:
        """Download a study's files (of one target, or all) into `folder`, each checked by its sha256.

        With several targets each gets a folder `target_<n>`. A file already there whole is kept. Raises
        `DamagedDownload`; a damaged file never appears under its name.
        """
        artifacts = [one for one in self.artifacts(study_id) if target is None or one.target == target]
        several = len({one.target for one in artifacts}) > 1
        return [self._download(one, Path(folder) / (f"target_{one.target}" if several else "")) for one in artifacts]

    def _download(self, artifact: Artifact, folder: Path) -> Path:
        name = Path(artifact.name).name
        if name != artifact.name or name in ("", ".", ".."):
            raise DamagedDownload(f"the server names a file {artifact.name!r}, which is not a plain file name")
        folder.mkdir(parents=True, exist_ok=True)
        path, part = folder / name, folder / f".{name}.part"
        if path.is_file() and _sha256(path) == artifact.sha256:
            return path
        have = part.stat().st_size if part.is_file() else 0
        headers = {"Range": f"bytes={have}-"} if 0 < have < artifact.size_bytes else {}
        with self._errors(), self._http.stream("GET", artifact.href, headers=headers) as response:
            if response.status_code not in (200, 206):
                response.read()
                raise api_error(response.status_code, _problem(response))
            with open(part, "ab" if response.status_code == 206 else "wb") as file:
                for piece in response.iter_bytes():
                    file.write(piece)
        found = _sha256(part)
        if found != artifact.sha256:
            part.unlink()
            raise DamagedDownload(f"{name} has sha256 {found}, the server named {artifact.sha256}")
        part.replace(path)
        return path

    def _upload(self, address: str, files: list[tuple[str, Path]]) -> str:
        opened = []
        try:
            for field, path in files:
                try:
                    opened.append((field, (path.name, open(path, "rb"))))
                except OSError as error:
                    raise BitwrightError(f"cannot read {path}: {error.strerror}") from None
            with self._errors():
                response = self._http.post(address, files=opened, timeout=None)
        finally:
            for _, (_, file) in opened:
                file.close()
        if response.status_code >= 400:
            raise api_error(response.status_code, _problem(response))
        return str(response.json()["id"])

    def _json(self, method: str, address: str, *, params: Mapping[str, Any] | None = None) -> Any:
        return self._send(method, address, params=params, retry=True).json()

    def _send(
        self,
        method: str,
        address: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        retry: bool = False,
    ) -> httpx.Response:
        pause_s = FIRST_PAUSE_S
        for attempt in range(self._retries + 1):
            last = attempt == self._retries or not retry
            try:
                with self._errors():
                    response = self._http.request(method, address, json=json, params=params, headers=headers)
            except ServerUnreachable:
                if last:
                    raise
            else:
                if response.status_code < 400:
                    return response
                if last or response.status_code not in _RETRIED_STATUSES:
                    raise api_error(response.status_code, _problem(response))
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise ServerUnreachable(
                f"{self.url} does not answer: {error or type(error).__name__} (start it with: bitwright-server up)"
            ) from None


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        problem = response.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
