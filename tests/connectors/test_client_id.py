"""Client ids: their random part, where it is stored, and how long the broker keeps the session."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from msgspec import structs

from stream_gru.config.run_schema import BrokerConfig
from stream_gru.connectors.mqtt.auth import (
    CLIENT_ID_FILE,
    client_id,
    new_client_id,
    sender_label,
    session_expiry_s,
    stored_client_id,
)
from stream_gru.core.errors import StoreError
from stream_gru.runtime.app import with_stored_client_id
from stream_gru.runtime.resolved_config import ResolvedConfig, resolve_file
from tests.support.daemons import mqtt_config

BROKER = BrokerConfig(url="mqtt://h")
FORM = re.compile(r"stream-gru-[A-Za-z0-9.-]+-[0-9a-f]{16}")


def resolved(folder: Path, *, client: str = "", state: bool = True) -> ResolvedConfig:
    """A daemon with a source and a sink at one broker."""
    run = f'state_dir = "{folder / "state"}"' if state else ""
    text = mqtt_config("mqtt://h", run=run).replace('client_id = "gateway"', f'client_id = "{client}"')
    path = folder / "gateway.toml"
    path.write_text(text)
    return resolve_file(path)


def bases(config: ResolvedConfig) -> set[str]:
    """The client ids in the brokers of sources and sinks."""
    brokers = [source.broker for source in config.sources] + [sink.broker for sink in config.sinks]
    return {broker.client_id for broker in brokers if broker is not None}


def test_the_id_stays_in_the_state_folder(tmp_path: Path) -> None:
    """It is made once, only its owner can read it, and it goes where the folder goes."""
    first = stored_client_id(tmp_path / "state")
    assert FORM.fullmatch(first)
    assert (tmp_path / "state" / CLIENT_ID_FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / "state").rename(tmp_path / "moved")
    assert stored_client_id(tmp_path / "moved") == first
    assert stored_client_id(tmp_path / "state") != first


@pytest.mark.parametrize("content", [b"", b"gateway", b"stream-gru-h-0123", b"\xff\x00", b"x" * 100_000])
def test_a_damaged_id_is_replaced_and_logged(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its session is lost, but the gateway comes up by itself."""
    path = tmp_path / CLIENT_ID_FILE
    path.write_bytes(content)
    made = stored_client_id(tmp_path)
    assert FORM.fullmatch(made)
    assert stored_client_id(tmp_path) == made
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(f"{path}: expected a client id, got ")


def test_an_id_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """With another id, the messages that the broker keeps would never be read."""
    (tmp_path / CLIENT_ID_FILE).mkdir()
    with pytest.raises(StoreError, match="client_id: the client id cannot be read: Is a directory"):
        stored_client_id(tmp_path)


def test_an_id_that_cannot_be_stored_is_an_error(tmp_path: Path) -> None:
    """It would be another one after each start."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="client_id: the client id cannot be "):
        stored_client_id(tmp_path / "file" / "state")


def test_ids_cannot_be_guessed() -> None:
    """Without a state folder each connection has an id of its own, which no message reveals."""
    ids = {client_id(BROKER, "source", "a") for _ in range(100)}
    assert len(ids) == 100
    assert all(FORM.fullmatch(one.removesuffix("-source-a")) for one in ids)
    own = new_client_id()
    assert own[-16:] not in sender_label(own)
    assert sender_label(own) == sender_label(own) != sender_label(new_client_id())


@pytest.mark.parametrize(
    ("keys", "expected_s"),
    [
        ({"client_id": "gateway"}, 604_800),
        ({"client_id": "gateway", "protocol": "3.1.1"}, 604_800),
        ({"client_id": "gateway", "session_expiry_s": 0}, 0),
        ({}, 600),
        ({"session_expiry_s": 60}, 60),
        ({"protocol": "3.1.1"}, 0),
    ],
)
def test_a_broker_keeps_a_session_only_for_those_who_return(keys: dict[str, object], expected_s: int) -> None:
    """An id that ends with the process has a session for a lost connection, with MQTT 3.1.1 none."""
    assert session_expiry_s(structs.replace(BROKER, **keys)) == expected_s


def test_a_configuration_gets_the_id_of_its_state_folder(tmp_path: Path) -> None:
    """All parts have the same beginning, so that a reload changes nothing."""
    config = with_stored_client_id(resolved(tmp_path))
    assert bases(config) == {stored_client_id(tmp_path / "state")}
    assert with_stored_client_id(resolved(tmp_path)).sources == config.sources


def test_a_configured_id_is_used_as_it_stands(tmp_path: Path) -> None:
    """Access lists name it; then no file is made."""
    config = resolved(tmp_path, client="gw7")
    assert with_stored_client_id(config) is config
    assert client_id(structs.replace(BROKER, client_id="gw7"), "sink", "out") == "gw7-sink-out"
    assert not (tmp_path / "state").exists()


def test_without_a_state_folder_nothing_is_stored(tmp_path: Path) -> None:
    """Each connection makes its own."""
    config = resolved(tmp_path, state=False)
    assert with_stored_client_id(config) is config
    assert bases(config) == {""}
