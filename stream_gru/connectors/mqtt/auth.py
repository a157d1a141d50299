"""Client ids, credentials and TLS of a broker.

Who connects with the daemon's client id takes over its connection and its session.  So an id that the daemon makes has
a random part, which stays in the state folder: the session belongs to the states.

Decision: a `client_id` of the configuration is used as it stands, without a random part, since access lists (``%c`` of
Mosquitto) and cloud brokers demand certain ids.  Where anybody may connect, it is better left out.

Decision: a damaged file is replaced, as a damaged store is, so that the gateway comes up by itself; the messages that
wait at the broker are lost, and logged so.  A file that cannot be read is an error: it may be readable again.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import secrets
import socket
import ssl
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from stream_gru.config.run_schema import BrokerConfig
from stream_gru.connectors.credentials import read_secret, require_private
from stream_gru.connectors.folders import write_private
from stream_gru.core.errors import ConfigError, StoreError

log = logging.getLogger(__name__)

_HANDSHAKE_S = 5.0
Role = Literal["source", "sink", "control"]

CLIENT_ID_FILE = "client_id"
_MADE = re.compile(r"stream-gru-[A-Za-z0-9.-]{1,64}-[0-9a-f]{16}")
_MAX_BYTES = 256
# How long a broker keeps the session of an id that ends with the process: over a lost connection, not for long.
_PROCESS_SESSION_S = 600


def client_id(broker: BrokerConfig, role: Role, name: str = "") -> str:
    """The MQTT client id of one connection, unique within the daemon; a new one with each call without ``client_id``.

    ``role`` stands before ``name`` (that of the source or sink), so that no name can collide with another role.
    """
    base = broker.client_id or new_client_id()
    return f"{base}-{role}-{name}" if name else f"{base}-{role}"


def new_client_id() -> str:
    """An unpredictable prefix for client ids; the host name identifies the gateway in the broker's log."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:64] or "localhost"
    return f"stream-gru-{host}-{secrets.token_hex(8)}"


def stored_client_id(folder: Path) -> str:
    """The beginning of the client ids of the daemon whose state is in ``folder``; the first call makes it.

    Raises StoreError when it cannot be read or stored.
    """
    path = folder / CLIENT_ID_FILE
    try:
        with path.open("rb") as file:
            found = file.read(_MAX_BYTES).decode("ascii", "replace").strip()
    except FileNotFoundError:
        found = ""
    except OSError as error:
        raise StoreError(f"{path}: the client id cannot be read: {error.strerror}") from error
    else:
        if found and is_made(found):
            return found
        log.error(
            "%s: expected a client id, got %.80r; a new one is used, and messages that a broker keeps for the old one "
            "are lost",
            path, found,
        )  # fmt: skip
    made = new_client_id()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, f"{made}\n".encode())
    except OSError as error:
        raise StoreError(f"{path}: the client id cannot be stored: {error.strerror}") from error
    return made


def is_made(base: str) -> bool:
    """Whether the daemon has made this beginning of client ids, and not the configuration."""
    return not base or _MADE.fullmatch(base) is not None


def sender_label(own_id: str) -> str:
    """What a client writes into messages to recognise its own; all may read it, so it does not reveal the id."""
    return blake2b(own_id.encode(), digest_size=8).hexdigest()


def session_expiry_s(broker: BrokerConfig) -> int:
    """Seconds for which the broker keeps a session without a connection; 0: it ends with the connection.

    No later process resumes the session of an id that ends with this one; MQTT 3.1.1 would keep it without end.
    """
    if broker.client_id:
        return broker.session_expiry_s
    return min(broker.session_expiry_s, _PROCESS_SESSION_S) if broker.protocol == "5" else 0


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
