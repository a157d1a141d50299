"""Client ids, credentials and TLS of a broker."""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from stream_gru.config.run_schema import BrokerConfig
from stream_gru.connectors.credentials import read_secret, require_private
from stream_gru.core.errors import ConfigError

log = logging.getLogger(__name__)

_HANDSHAKE_S = 5.0
Role = Literal["source", "sink", "control"]


def client_id(broker: BrokerConfig, role: Role, name: str = "") -> str:
    """The MQTT client id of one connection: stable across restarts, unique within the daemon.

    ``role`` stands before ``name`` (that of the source or sink), so that no name can collide with another role.
    """
    base = broker.client_id or f"stream-gru-{socket.gethostname()}"
    return f"{base}-{role}-{name}" if name else f"{base}-{role}"


def credentials(broker: BrokerConfig) -> tuple[str | None, str | None]:
    """User and password, read from their files each time.  Raises ConfigError."""
    user = read_secret(broker.user_file) if broker.user_file else broker.user or None
    return user, read_secret(broker.password_file) if broker.password_file else None


def log_risks(broker: BrokerConfig) -> None:
    """Log what an attacker in the network could do."""
    host, _ = broker.host_and_port()
    if not is_tls(broker):
        if broker.password_file and not _is_loopback(host):
            log.warning("broker %s: the password is sent in plain text; use mqtts://", broker.name)
    elif broker.insecure_skip_verify:
        log.warning("broker %s: insecure_skip_verify: the broker's certificate is not verified", broker.name)


def is_tls(broker: BrokerConfig) -> bool:
    """Whether the connection is encrypted."""
    return urlsplit(broker.url).scheme == "mqtts"


def tls_context(broker: BrokerConfig) -> ssl.SSLContext:
    """TLS 1.2 or later with the current files.  Raises ConfigError when one cannot be used."""
    for path in (broker.ca_file, broker.cert_file, broker.key_file):
        if path:
            _require_readable(broker, path)
    if broker.key_file:
        require_private(broker.key_file)
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if broker.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    path = broker.ca_file
    try:
        if broker.ca_file:
            context = _only_this_authority(context, broker.ca_file)
        path = broker.cert_file
        if broker.cert_file:
            # The empty password keeps an encrypted key from asking for one at the terminal.
            context.load_cert_chain(broker.cert_file, broker.key_file or None, password="")
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"broker {broker.name}: {path}: expected a certificate and its key (PEM): {error}") from error
    return context


def _only_this_authority(context: ssl.SSLContext, ca_file: str) -> ssl.SSLContext:
    """The same settings, but no authority besides those of the file."""
    strict = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    strict.minimum_version = context.minimum_version
    strict.check_hostname, strict.verify_mode = context.check_hostname, context.verify_mode
    strict.load_verify_locations(ca_file)
    return strict


class ReloadingContext(ssl.SSLContext):
    """A context that reads its files for each connection, so that renewed certificates are used."""

    broker: BrokerConfig

    @classmethod
    def of(cls, broker: BrokerConfig) -> ReloadingContext:
        """The context of a broker."""
        context = cls(ssl.PROTOCOL_TLS_CLIENT)
        context.broker = broker
        context.check_hostname = not broker.insecure_skip_verify
        return context

    def wrap_socket(self, sock: socket.socket, *args: Any, **options: Any) -> ssl.SSLSocket:
        """Wrap a socket with the current files and shake hands; close it if that fails, which paho does not.

        Raises ConfigError, OSError.
        """
        wrapped: socket.socket = sock
        try:
            wrapped = secure = tls_context(self.broker).wrap_socket(sock, *args, **options)
            secure.settimeout(_HANDSHAKE_S)
            secure.do_handshake()
        except ValueError as error:
            wrapped.close()
            raise ConfigError(f"broker {self.broker.name}: {self.broker.url}: {error}") from error
        except BaseException:
            wrapped.close()
            raise
        return secure


def _require_readable(broker: BrokerConfig, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"broker {broker.name}: {path}: expected a file (PEM), got none: {error.strerror}") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
