from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_gru.config import parse_config
from stream_gru.connectors.registry import CATALOG
from stream_gru.connectors.sources.mqtt import MqttSourceConfig
from stream_gru.core.types import Position, RawMessage
from stream_gru.examples.simulators.devices import clean_pumps, json_text, sample_of
from stream_gru.runtime.resolved_config import resolve_file
from stream_gru.runtime.wiring import build_ingest, build_shared, max_streams
from tests.deploy.support import DEPLOY
from tests.support.paths import ROOT, SAMPLE_DATA

DOCKER = DEPLOY / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
each_service = pytest.mark.parametrize("name", sorted(SERVICES))


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, in order, with continued lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (DOCKER / "Dockerfile").read_text()).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(word.upper(), " ".join(rest.split())) for word, rest in lines]


def arguments_of(word: str) -> list[str]:
    """The arguments of an instruction, once per occurrence."""
    return [rest for name, rest in instructions() if name == word]


def ignored(path: str) -> bool:
    """Whether .dockerignore leaves a file out: the last line that matches it, or a folder above it, decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.lstrip("!").removeprefix("**/")
            parts = [*Path(path).parents, Path(path)]
            if any(fnmatch.fnmatch(str(part), pattern) or fnmatch.fnmatch(part.name, pattern) for part in parts):
                out = not line.startswith("!")
    return out


def test_the_image_starts_the_daemon_as_nobody() -> None:
    """Numeric user without privileges, exec forms so that SIGTERM reaches the daemon, state in a volume."""
    assert arguments_of("USER") == ["65532:65532"]
    assert [json.loads(rest) for rest in arguments_of("ENTRYPOINT")] == [["stream-gru"]]
    assert [json.loads(rest) for rest in arguments_of("CMD")] == [["run", "/etc/stream-gru/gateway.toml"]]
    assert arguments_of("STOPSIGNAL") == ["SIGTERM"]
    assert [json.loads(rest) for rest in arguments_of("VOLUME")] == [["/var/lib/stream-gru"]]
    (check,) = arguments_of("HEALTHCHECK")
    assert json.loads(check[check.index("[") :]) == ["stream-gru", "health"]
    words = [word for word, _ in instructions()]
    assert words.index("USER") < words.index("ENTRYPOINT")


def test_the_image_is_built_in_two_stages_from_a_named_version() -> None:
    """The base has a full version; the second stage gets only wheels: no compiler, no sources, no TensorFlow."""
    assert re.fullmatch(r"PYTHON=3\.11\.\d+-slim-bookworm", arguments_of("ARG")[0])
    assert arguments_of("FROM") == ["python:${PYTHON} AS wheels", "python:${PYTHON}"]
    second = instructions()[[n for n, (word, _) in enumerate(instructions()) if word == "FROM"][1] :]
    assert not [rest for word, rest in second if word in ("COPY", "ADD")]
    installs = [rest for word, rest in second if word == "RUN"]
    assert len(installs) == 1
    assert "--no-index" in installs[0]
    assert "train" not in "".join(rest for _, rest in instructions())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"VERSION={version}" in arguments_of("ARG")
    assert "org.opencontainers.image.version" in arguments_of("LABEL")[0]


def test_the_image_installs_only_what_has_a_hash() -> None:
    """Each call of pip checks hashes, or has neither an index nor dependencies: it handles our own wheel."""
    calls = [call for rest in arguments_of("RUN") for call in rest.split("&&") if "-m pip" in call]
    assert len(calls) == 5
    for call in calls:
        locked = "--require-hashes --requirement /wheels/" in call
        assert locked or ("--no-index" in call and "--no-deps" in call), call
    (wheel,) = [call for call in calls if "pip wheel" in call]
    assert "--no-build-isolation" in wheel


def test_the_context_holds_what_the_image_is_made_of() -> None:
    """Every copied file exists and is not ignored; recordings, tests and secrets are ignored."""
    for line in arguments_of("COPY"):
        for path in line.split()[:-1]:
            assert (ROOT / path).exists(), path
            assert not ignored(path), path
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for needed in (project["readme"], *project["license-files"], "stream_gru/config/run.toml", "stream_gru/py.typed"):
        assert not ignored(needed), needed
    for kept in (".git/config", "sample_data/train/pump-1.csv.gz", "tests/__init__.py", "deploy/docker/secrets/x"):
        assert ignored(kept), kept
    assert ignored("stream_gru/__pycache__/daemon.cpython-311.pyc")


@each_service
def test_every_service_is_shut_in(name: str) -> None:
    """Read-only root, no capabilities, no new privileges, published ports only on the host's loopback."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "/tmp" in service["tmpfs"]  # noqa: S108 - inside a container
    assert not service.get("privileged")
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), port


@each_service
def test_every_image_is_named_with_its_version(name: str) -> None:
    """No image is `latest`; our own has the version of the package."""
    image, _, tag = SERVICES[name]["image"].rpartition(":")
    assert image
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)
    if image == "stream-gru":
        assert tag == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@each_service
def test_whatever_is_mounted_exists(name: str) -> None:
    """Files of the tree are there and mounted read-only; volumes and secrets are declared."""
    for mount in SERVICES[name]["volumes"]:
        source, target, *mode = mount.split(":")
        assert target.startswith("/")
        if source.startswith("."):
            assert (DOCKER / source).resolve().exists(), mount
            assert mode == ["ro"], mount
        else:
            assert source in COMPOSE["volumes"], mount
    for secret in SERVICES[name].get("secrets", []):
        assert COMPOSE["secrets"][secret]["file"].startswith("./secrets/")


def test_the_image_is_built_from_the_root() -> None:
    """The context of the build is the repository, and its Dockerfile is there."""
    build = SERVICES["stream-gru"]["build"]
    context = (DOCKER / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).is_file()


def test_secrets_never_reach_the_repository() -> None:
    """The folder with the secrets is ignored by git, and no file contains a password."""
    assert "/secrets/" in (DOCKER / ".gitignore").read_text().splitlines()
    for file in DOCKER.iterdir():
        if file.is_file():
            assert not re.search(
                r"(?im)^\s*\w*password\w*\s*[=:]\s*\"?(?!/run/secrets/)[^\s\"/]+\"?$", file.read_text()
            )


def test_the_configuration_suits_the_container() -> None:
    """gateway.toml is valid, and matches what the compose file mounts, publishes and names."""
    config = parse_config((DOCKER / "gateway.toml").read_text(), "gateway.toml", CATALOG)
    service = SERVICES["stream-gru"]
    targets = {mount.split(":")[1] for mount in service["volumes"]}
    assert config.run is not None
    assert config.run.bundle in targets
    assert config.run.state_dir in targets
    (broker,), (source,), (sink,) = config.broker, config.source, config.sink
    assert broker.url == "mqtt://mosquitto:1883"
    assert broker.password_file.removeprefix("/run/secrets/") in service["secrets"]
    assert isinstance(source, MqttSourceConfig)
    assert (source.topics, source.format) == (["sensors/{stream}/data"], "json")
    assert sink.__struct_config__.tag == "mqtt"
    assert service["ports"] == [f"127.0.0.1:9723:{config.metrics.listen.removeprefix('0.0.0.0:')}"]


def test_what_a_simulated_pump_publishes_is_taken(tmp_path: Path) -> None:
    """The configuration reads what `stream-gru simulate pump --mqtt` sends, with its time."""
    path = tmp_path / "gateway.toml"
    path.write_text((DOCKER / "gateway.toml").read_text().replace("/etc/stream-gru/", f"{SAMPLE_DATA}/"))
    plan = resolve_file(path, read_secrets=False)
    (source,) = plan.sources
    pump, time_ns = clean_pumps(1.0, 1, 1, 7)[0], 1_767_225_600_250_000_000
    payload = json_text(sample_of(pump, 0, time_ns)).encode()
    message = RawMessage(payload, "pump-7", b"", time_ns + 1, Position(source.name, 1), "", None, source.name)
    ingest = build_ingest(source, build_shared(plan), max_streams(plan))
    batch = ingest.apply(ingest.decode([message])).batch
    assert batch.stream_names == ("pump-7",)
    assert batch.time_ns.tolist() == [time_ns]
    assert batch.values.shape == (1, 4)
    assert not batch.rejected


def test_the_daemon_keeps_its_name_at_the_broker() -> None:
    """The name of a container changes at each start; the client id is in the volume, and with it the session."""
    config = parse_config((DOCKER / "gateway.toml").read_text(), "gateway.toml", CATALOG)
    assert [broker.client_id for broker in config.broker] == [""]
    assert config.run is not None
    assert config.run.state_dir in {mount.split(":")[1] for mount in SERVICES["stream-gru"]["volumes"]}


def test_the_bundle_that_is_mounted_is_the_sample() -> None:
    """The mounted path leads to the shipped bundle."""
    (mounted,) = [mount for mount in SERVICES["stream-gru"]["volumes"] if "pump.bundle" in mount]
    folder = (DOCKER / mounted.split(":")[0]).resolve()
    assert json.loads((folder / "manifest.json").read_text())["format_version"] == 2


def test_the_broker_keeps_what_the_other_one_keeps() -> None:
    """The broker of the compose file and the fragment for a machine have the same limits."""
    ours, theirs = (
        dict(re.findall(r"(?m)^([a-z_]+) (.+)$", file.read_text()))
        for file in (DEPLOY / "mosquitto" / "stream-gru.conf", DOCKER / "mosquitto.conf")
    )
    assert ours.pop("listener") == "1883 127.0.0.1"
    assert ours.pop("allow_anonymous") == "true"
    assert theirs.pop("listener") == "1883"
    assert theirs.pop("allow_anonymous") == "false"
    assert theirs.pop("password_file").removeprefix("/run/secrets/") in SERVICES["mosquitto"]["secrets"]
    assert theirs.pop("persistence_location") == "/mosquitto/data/"
    assert ours == theirs
