"""Downloads: HEAD, ETag, and bytes the store has lost."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import httpx

from service.settings import Settings
from tests.contracts.test_rest_api import post_study, problem, publish

CONTENT = bytes(range(256)) * 8


def artifact_of(http: httpx.Client, settings: Settings, name: str = "artifact_0.onnx") -> str:
    """The address of the one file of a finished study."""
    study = post_study(http)
    publish(settings, study["id"], {name: CONTENT})
    (artifact,) = http.get(f"/v1/studies/{study['id']}/artifacts").json()["items"]
    return str(artifact["href"])


def test_head_tells_what_get_would_send(http: httpx.Client, settings: Settings) -> None:
    address = artifact_of(http, settings)
    whole, head = http.get(address), http.head(address)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "etag", "accept-ranges", "content-disposition"):
        assert head.headers[name] == whole.headers[name], name
    part = http.head(address, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.headers["content-length"]) == (206, "10")
    assert part.headers["content-range"] == f"bytes 10-19/{len(CONTENT)}"
    assert http.head(address, headers={"Range": f"bytes={len(CONTENT)}-"}).status_code == 416
    assert http.head("/v1/artifacts/nothing").status_code == 404


def test_what_a_client_has_is_not_sent_again(http: httpx.Client, settings: Settings) -> None:
    address = artifact_of(http, settings)
    etag = f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    assert http.get(address).headers["etag"] == etag
    for known in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        unchanged = http.get(address, headers={"If-None-Match": known})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    assert http.get(address, headers={"If-None-Match": '"other"'}).content == CONTENT


def test_an_interrupted_download_goes_on(http: httpx.Client, settings: Settings) -> None:
    address = artifact_of(http, settings)
    first = http.get(address, headers={"Range": "bytes=0-999"})
    resumed = {"Range": "bytes=1000-", "If-Range": first.headers["etag"]}
    assert first.content + http.get(address, headers=resumed).content == CONTENT


def test_a_file_name_stays_inside_its_header(http: httpx.Client, settings: Settings) -> None:
    address = artifact_of(http, settings, 'a"b; filename=c.html')
    assert http.get(address).headers["content-disposition"] == 'attachment; filename="a_b_ filename_c.html"'


def test_bytes_the_store_has_lost(http: httpx.Client, settings: Settings) -> None:
    address = artifact_of(http, settings)
    shutil.rmtree(Path(settings.resolved_blob_url))
    problem(http.get(address), 500, "blob_missing")
