"""Authentication: certificates of both sides, users and passwords, and the errors of each."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stream_gru.config.run_schema import BrokerConfig
from stream_gru.connectors.mqtt.auth import log_risks, tls_context
from stream_gru.connectors.sources.mqtt import MqttSource, MqttSourceConfig
from stream_gru.core.errors import ConfigError
from tests.support.brokers import Broker
from tests.support.certificates import Authority
from tests.support.requirements import needs_mosquitto
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.servers, needs_mosquitto]
SOURCE_TABLE = MqttSourceConfig(topics=["sensors/{stream}/data"], format="json")


@contextmanager
def mqtt_source(**keys: Any) -> Iterator[MqttSource]:
    """A source that tries to connect."""
    source = MqttSource(SOURCE_TABLE, BrokerConfig(**{"reconnect_max_delay_s": 0.3, **keys}), name="mqtt")
    source.open(None)
    try:
        yield source
    finally:
        source.close()


def gets_in(source: MqttSource) -> None:
    """Wait until it is connected."""
    wait_for(lambda: source.health().connected)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """The certificate authority."""
    return Authority(tmp_path)


def secured(folder: Path, authority: Authority, host: str = "127.0.0.1", **options: Any) -> Broker:
    """A broker whose certificate names ``host``."""
    return Broker(folder, tls=(authority.file, *authority.issue("server", host)), **options)


def test_a_broker_with_a_certificate_of_our_authority(tmp_path: Path, authority: Authority) -> None:
    """Messages are received over TLS, also many at once."""
    with secured(tmp_path, authority) as broker, mqtt_source(url=broker.url, ca_file=str(authority.file)) as source:
        gets_in(source)
        wait_for(lambda: source._subscriptions._granted)
        with mqtt_source(url=broker.url, ca_file=str(authority.file), client_id="other") as other:
            gets_in(other)
            for i in range(200):
                other.connection.call_soon(lambda client, i=i: client.publish("sensors/p/data", str(i), 1))  # type: ignore[misc]
            got: list[int] = []

            def all_there() -> bool:
                got.extend(int(message.payload) for message in source.poll(1000, 0.1))
                return len(got) == 200

            wait_for(all_there)
            assert got == list(range(200))


@pytest.mark.parametrize("wrong", ["host", "authority", "system"])
def test_a_broker_that_is_not_who_it_should_be_is_refused(
    tmp_path: Path, authority: Authority, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Another host in the certificate, another authority, or only the system's authorities: no connection, and the
    reason is logged.
    """
    host = "other.example" if wrong == "host" else "127.0.0.1"
    ca_file = {"host": authority.file, "authority": Authority(tmp_path, "stranger").file, "system": ""}[wrong]
    with secured(tmp_path, authority, host) as broker, mqtt_source(url=broker.url, ca_file=str(ca_file)) as source:
        wait_for(lambda: "certificate verify failed" in caplog.text)
        assert not source.health().connected
        assert source.connection.alive
    assert caplog.text.count("not connected") == 1


def test_not_looking_at_the_certificate_is_warned_of(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """Insecure_skip_verify accepts any broker and logs a warning at each start."""
    broker = secured(tmp_path, authority, "other.example")
    with broker, mqtt_source(url=broker.url, insecure_skip_verify=True) as source:
        gets_in(source)
    assert "is not verified" in caplog.text


def test_a_client_certificate(tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    """A broker that requires one accepts a client that presents it; a certificate renewed on disk is used at the next
    attempt.
    """
    certificate, key = authority.issue("client")
    good = certificate.read_bytes(), key.read_bytes()
    strange_certificate, strange_key = Authority(tmp_path, "stranger").issue("impostor")
    certificate.write_bytes(strange_certificate.read_bytes())
    key.write_bytes(strange_key.read_bytes())
    files = {"ca_file": str(authority.file), "cert_file": str(certificate), "key_file": str(key)}
    with secured(tmp_path, authority, client_certificates=True) as broker:
        with mqtt_source(url=broker.url, ca_file=str(authority.file)) as bare:
            wait_for(lambda: "not connected" in caplog.text)
            assert not bare.health().connected
        with mqtt_source(url=broker.url, **files) as source:
            wait_for(lambda: caplog.text.count("not connected") >= 2)
            assert not source.health().connected
            key.write_bytes(good[1])
            certificate.write_bytes(good[0])
            gets_in(source)


def test_files_that_are_missing_or_wrong_are_errors_at_the_start(tmp_path: Path, authority: Authority) -> None:
    """The error names the file and its expected content."""
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    for keys, words in (
        ({"ca_file": str(tmp_path / "gone.pem")}, r"gone\.pem: expected a file \(PEM\), got none"),
        ({"ca_file": str(nonsense)}, r"nonsense\.pem: expected a certificate"),
        ({"cert_file": str(nonsense), "ca_file": str(authority.file)}, r"nonsense\.pem: expected a certificate"),
        ({"password_file": str(tmp_path / "gone")}, r"gone: expected a file with a secret"),
    ):
        source = MqttSource(SOURCE_TABLE, BrokerConfig(url="mqtts://127.0.0.1:1", **keys), name="mqtt")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=words):
            source.open(None)
        source.close()


@pytest.mark.parametrize("keys", [{}, {"ca_file": "authority"}, {"insecure_skip_verify": True}])
def test_old_tls_is_not_spoken(authority: Authority, keys: dict[str, Any]) -> None:
    """With any configuration: TLS 1.2 or later, and names and certificates are verified unless configured otherwise."""
    given = {**keys, **({"ca_file": str(authority.file)} if "ca_file" in keys else {})}
    context = tls_context(BrokerConfig(url="mqtts://h", **given))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    secure = not keys.get("insecure_skip_verify")
    assert context.check_hostname is secure
    assert context.verify_mode == (ssl.CERT_REQUIRED if secure else ssl.CERT_NONE)


def test_a_key_that_others_can_read_is_refused(authority: Authority) -> None:
    """At the start, with the command that fixes it."""
    certificate, key = authority.issue("client")
    key.chmod(0o644)
    with pytest.raises(ConfigError, match=r"client\.key: expected a secret .* got mode 0644; run: chmod 600"):
        tls_context(BrokerConfig(url="mqtts://h", cert_file=str(certificate), key_file=str(key)))


def test_a_renewed_authority_is_used_at_the_next_attempt(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is read for each connection."""
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(Authority(tmp_path, "stranger").file.read_bytes())
    with secured(tmp_path, authority) as broker, mqtt_source(url=broker.url, ca_file=str(trusted)) as source:
        wait_for(lambda: "certificate verify failed" in caplog.text)
        trusted.write_bytes(authority.file.read_bytes())
        gets_in(source)


def test_user_and_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong password is logged and retried: the file is read each time, so a corrected password works."""
    secret = tmp_path / "secret"
    secret.write_text("wrong\n")
    secret.chmod(0o600)
    user = tmp_path / "user"
    user.write_text("daemon\n")
    user.chmod(0o600)
    with Broker(tmp_path, users={"daemon": "right"}) as broker:
        keys = {"url": broker.url, "user_file": str(user), "password_file": str(secret)}
        with mqtt_source(**keys) as source:
            wait_for(lambda: "refused the connection" in caplog.text)
            assert not source.health().connected
            secret.write_text("right\n")
            gets_in(source)
        with mqtt_source(url=broker.url, user="daemon", password_file=str(secret), protocol="3.1.1") as source:
            gets_in(source)
    assert "wrong" not in caplog.text
    assert caplog.text.count("refused the connection") == 1


def test_a_password_in_plain_text_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """A warning for another machine without TLS; none on this machine or with TLS."""
    secret = {"password_file": "p"}
    for url in ("mqtt://localhost", "mqtt://[::1]:1884", "mqtts://gateway.example"):
        log_risks(BrokerConfig(url=url, **secret))  # type: ignore[arg-type]
    assert not caplog.text
    log_risks(BrokerConfig(url="mqtt://gateway.example", **secret))  # type: ignore[arg-type]
    assert "plain text" in caplog.text
