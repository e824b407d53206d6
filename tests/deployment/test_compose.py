"""The production files, as far as they can be checked without a container engine.

`compose-spec.json` is the schema of the compose specification (Apache-2.0, licence beside it), unchanged.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from typer.main import get_command

from service.settings import Settings
from workers.server_cli import app, is_loopback

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
OURS = ("migrate", "api", "reaper", "worker", "worker-gpu")
PLACEHOLDER = re.compile(r"\$\{(\w+)(?::[-?][^}]*)?\}")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))


@pytest.fixture(scope="module")
def dockerfile() -> list[list[str]]:
    """The Dockerfile's instructions, one list of words each."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def example() -> dict[str, str]:
    """The variables of `compose.env.example`, those commented out included."""
    lines = (ROOT / "compose.env.example").read_text().splitlines()
    found = (re.fullmatch(r"#? ?([A-Z][A-Z0-9_]+)=(.*)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def test_the_compose_file_follows_the_specification(compose: dict[str, Any]) -> None:
    schema = json.loads((HERE / "compose-spec.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    assert [f"{list(error.path)}: {error.message}" for error in validator.iter_errors(compose)] == []
    compose_with_a_slip = {**compose, "services": {"api": {"imagee": "x"}}}
    assert list(validator.iter_errors(compose_with_a_slip)), "the schema refuses what is wrong"


def test_every_process_and_server_of_production_is_there(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {*OURS, "postgres", "redis", "minio"}
    assert compose["services"]["minio"]["profiles"] == ["minio"]
    assert compose["services"]["worker-gpu"]["profiles"] == ["gpu"]


@pytest.mark.parametrize("service", OURS)
def test_its_commands_exist(compose: dict[str, Any], service: str) -> None:
    entry = compose["services"][service]
    health = entry.get("healthcheck", {}).get("test", [])
    commands = [entry["command"]]
    if health:
        assert health[:2] == ["CMD", "bitwright-server"]
        commands.append(health[2:])
    for arguments in commands:
        answer = CliRunner().invoke(get_command(app), [*arguments, "--help"])
        assert answer.exit_code == 0, answer.output
        assert f"bitwright-server {' '.join(arguments)}" in re.sub(
            r"\s+", " ", answer.output.replace("root", "bitwright-server")
        )


def test_every_long_running_service_has_a_health_check(compose: dict[str, Any]) -> None:
    without = [name for name, entry in compose["services"].items() if "healthcheck" not in entry]
    assert without == ["migrate"]


@pytest.mark.parametrize("service", [*OURS, "postgres", "redis", "minio"])
def test_containers_can_do_little(compose: dict[str, Any], service: str) -> None:
    entry = compose["services"][service]
    assert entry["read_only"] is True
    assert entry["cap_drop"] == ["ALL"]
    assert entry["security_opt"] == ["no-new-privileges:true"]
    assert not entry.get("privileges")
    if service in OURS:
        uid = int(entry["user"].split(":")[0])
        assert uid > 0
        assert entry.get("cap_add") is None
        assert any(path.startswith("/tmp") for path in entry["tmpfs"]), "a read-only root needs a place to write"


def test_only_the_api_is_published_and_only_to_this_machine(compose: dict[str, Any], example: dict[str, str]) -> None:
    published = {name: entry["ports"] for name, entry in compose["services"].items() if "ports" in entry}
    assert list(published) == ["api"]
    assert is_loopback(example["BITWRIGHT_PUBLISH"].rpartition(":")[0])


def test_settings_are_known_by_their_names(
    compose: dict[str, Any], dockerfile: list[list[str]], example: dict[str, str]
) -> None:
    known = {f"BITWRIGHT_{name.upper()}" for name in Settings.model_fields}
    words = [word for line in dockerfile if line[0] == "ENV" for word in line[1:]]
    used = {word.split("=")[0] for word in words} | set(example)
    for service in OURS:
        used |= set(compose["services"][service]["environment"])
    ours = {name for name in used if name.startswith("BITWRIGHT_")}
    assert ours - known == {"BITWRIGHT_PUBLISH"}, "this one is of the compose file itself"


def test_the_settings_it_makes_are_valid(
    compose: dict[str, Any], dockerfile: list[list[str]], example: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = dict(word.split("=", 1) for line in dockerfile if line[0] == "ENV" for word in line[1:])
    given = {**image, **example, **compose["services"]["worker"]["environment"]}
    secrets = {"POSTGRES_PASSWORD": "p4", "REDIS_PASSWORD": "r4"}
    for name, value in given.items():
        if name.startswith("BITWRIGHT_"):
            monkeypatch.setenv(name, PLACEHOLDER.sub(lambda match: secrets.get(match[1], ""), value))
    settings = Settings()
    assert settings.resolved_database_url == "postgresql+psycopg://bitwright:p4@postgres:5432/bitwright"
    assert settings.resolved_broker_url == "redis://:r4@redis:6379/0"
    assert settings.auth == "keys", "the API listens on every address"
    assert settings.lease_s >= 6 * settings.beat_s
    assert settings.worker_silent_s > settings.lease_s


def test_names_that_are_filled_in_are_in_the_example(compose: dict[str, Any], example: dict[str, str]) -> None:
    used = {match[1] for match in PLACEHOLDER.finditer(yaml.safe_dump(compose))}
    assert used - set(example) == {"BITWRIGHT_TAG"}
    for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        assert example[name] == "", "no secret is shipped"


def test_secrets_come_from_a_file_that_git_ignores(compose: dict[str, Any]) -> None:
    assert {compose["services"][service]["env_file"] for service in OURS} == {"compose.env"}
    assert "compose.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_files_it_refers_to_exist(compose: dict[str, Any], dockerfile: list[list[str]]) -> None:
    targets = {line[3] for line in dockerfile if line[0] == "FROM" and line[2:3] == ["AS"]}
    for service in OURS:
        build = compose["services"][service]["build"]
        assert (ROOT / build["context"] / "Dockerfile").exists()
        assert build["target"] in targets
    volumes = {volume.split(":")[0] for entry in compose["services"].values() for volume in entry.get("volumes", [])}
    assert volumes == set(compose["volumes"])
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in dockerfile:
        if line[0] == "COPY" and not line[1].startswith("--from"):
            for source in line[1:-1]:
                assert (ROOT / source).exists(), source
                assert source in allowed, f"{source} is left out of the build's context"


def test_the_image_runs_as_nobody_special(dockerfile: list[list[str]], compose: dict[str, Any]) -> None:
    users = [line[1] for line in dockerfile if line[0] == "USER"]
    assert users == [compose["services"]["api"]["user"]]
    (entrypoint,) = [" ".join(line[1:]) for line in dockerfile if line[0] == "ENTRYPOINT"]
    assert json.loads(entrypoint) == ["tini", "--", "bitwright-server"], "an init reaps what stages leave"


def test_extras_it_installs_exist(dockerfile: list[list[str]]) -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = re.findall(r'"\.\[([\w,]+)\]"', " ".join(word for line in dockerfile for word in line))
    assert asked
    assert {name for names in asked for name in names.split(",")} <= set(extras)
