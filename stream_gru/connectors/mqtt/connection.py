"""One connection to a broker: a thread that connects, serves the socket, and reconnects.

    owner's threads ── wake, close ──▶ thread of the connection ── paho ──▶ socket ──▶ broker
                                             │ Handlers
                                             ▼
                                           owner

Decision: paho's own loop is not used.  Its thread ends with the first exception of a callback while the client still
reports a connection; its reconnect delays are equal for all clients and start over whenever the broker accepts;
stopping it can block on a frozen broker; and an acknowledgement from another thread can slip into the next connection.
Here one thread makes all calls of paho.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from stream_gru.config.run_schema import BrokerConfig
from stream_gru.connectors.mqtt.auth import (
    ReloadingContext,
    credentials,
    is_made,
    is_tls,
    log_risks,
    session_expiry_s,
    tls_context,
)
from stream_gru.connectors.mqtt.paho_client import Handlers, Limits, PahoClient, Will, refusal
from stream_gru.connectors.mqtt.reconnect import CONTESTED_S, Backoff, RivalDetector
from stream_gru.core.errors import ConfigError
from stream_gru.core.log_limiter import LogLimiter

log = logging.getLogger(__name__)

_ROOM_FOR_TOPIC_BYTES = 65_536
_CLOSED = "the broker closed the connection"
_TAKEN_OVER = 0x8E
_UNSPECIFIED = 0x80
_PROTOCOL_ERROR = 0x82
_NO_RETAIN = 0x9A
# A connection that is cut sooner may have been cut because of what was sent on it.
_SOON_S = 60.0
# How often another client with the same id is reported.
_RIVAL_EVERY_S = 600.0


class Connection:
    """The connection of one client id.  ``payload_bytes``: the largest payload to receive.

    ``epoch`` counts connections, ``short_connections`` those in a row that soon ended, closed by the broker or because
    of a packet that was not understood.  Another client with the same id is reported, and attempts to connect become
    rare; they never end.
    """

    def __init__(
        self,
        broker: BrokerConfig,
        client_id: str,
        handlers: Handlers,
        *,
        payload_bytes: int = 0,
        will: Will | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client_id = client_id
        self.connected = False
        self.epoch = 0
        self.reconnects = 0
        self.limits = Limits()
        self.session_expiry_s = session_expiry_s(broker)
        self._broker, self._handlers, self._clock, self._will = broker, handlers, clock, will
        self._client = self._make_client(payload_bytes, will)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._wake_in, self._wake_out = -1, -1
        self._wake_lock = threading.Lock()
        self._before_disconnect: Callable[[Client], None] | None = None
        self._end_session = False
        self._calls: deque[Callable[[Client], None]] = deque()
        self._logged_reasons: set[str] = set()
        self._reason = ""
        self._connected_at = 0.0
        self.short_connections = 0
        self._rival = RivalDetector()
        self._rival_log: LogLimiter[str] = LogLimiter(clock, burst=1, interval_s=_RIVAL_EVERY_S)
        self._was_cut = self._taken_over = False
        self._disconnect_by = 0.0
        self._behind = False

    @property
    def alive(self) -> bool:
        """Whether the thread connects or serves a connection."""
        return self._thread is not None and self._thread.is_alive()

    def open(self) -> None:
        """Start to connect; returns at once.  Raises ConfigError when user, password or certificates cannot be read."""
        if self._thread is not None:
            return
        credentials(self._broker)
        if is_tls(self._broker):
            tls_context(self._broker)
        log_risks(self._broker)
        self._stopping.clear()
        self._wake_out, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=f"mqtt {self.client_id}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Make the thread call its handlers now; any thread."""
        with self._wake_lock:
            if self._wake_in >= 0:
                with suppress(BlockingIOError):  # full: it wakes up anyway
                    os.write(self._wake_in, b"\0")

    def call_soon(self, work: Callable[[Client], None]) -> None:
        """Call ``work(client)`` on the thread of the connection, once it is connected."""
        self._calls.append(work)
        self.wake()

    def acknowledge(self, message: MQTTMessage) -> None:
        """Acknowledge a message; only in a handler."""
        if message.qos:
            self._client.ack(message.mid, message.qos)

    def close(
        self,
        before_disconnect: Callable[[Client], None] | None = None,
        timeout_s: float = 1.0,
        *,
        end_session: bool = False,
    ) -> None:
        """Call ``before_disconnect`` if connected, disconnect and end the thread, within ``timeout_s``.

        May be called twice.  ``end_session``: the broker drops the session (MQTT 5 only).
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._end_session = end_session
        self._before_disconnect, self._disconnect_by = before_disconnect, self._clock() + 0.8 * timeout_s
        self._stopping.set()
        self.wake()
        if thread is not threading.current_thread():
            thread.join(timeout_s)  # one in a handshake ends after its timeout

    def _make_client(self, payload_bytes: int, will: Will | None) -> Client:
        """Paho's client with everything that connections have in common."""
        newest = self._broker.protocol == "5"
        client = PahoClient(
            CallbackAPIVersion.VERSION2,
            self.client_id,
            clean_session=None if newest else self.session_expiry_s == 0,
            protocol=MQTTProtocolVersion.MQTTv5 if newest else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        # The owner bounds what is in flight; without this paho would hold back what the owner counts as sent.
        client.max_inflight_messages_set(0)
        if is_tls(self._broker):
            client.tls_set_context(ReloadingContext.of(self._broker))
        if will is not None:
            self._set_will(client, will, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._guarded(lambda _c, _u, message: self._handlers.message(message))
        client.on_publish = self._guarded(
            lambda _c, _u, mid, code, _p: self._handlers.published(mid, refusal(code, client.unlisted))
        )
        client.on_subscribe = self._guarded(
            lambda _c, _u, mid, codes, _p: self._handlers.subscribed(mid, [refusal(code) for code in codes])
        )
        client.on_unsubscribe = self._guarded(lambda _c, _u, mid, _codes, _p: self._handlers.unsubscribed(mid))
        client.on_socket_open = self._on_socket_open
        # Tells paho that the socket is served elsewhere: it must not write from the caller's thread.
        client.on_socket_register_write = lambda _c, _u, _s: None
        host, port = self._broker.host_and_port()
        if newest:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = self.session_expiry_s
            properties.ReceiveMaximum = self._broker.receive_maximum
            properties.MaximumPacketSize = payload_bytes + _ROOM_FOR_TOPIC_BYTES
            client.connect_async(host, port, self._broker.keepalive_s, clean_start=False, properties=properties)
        else:
            client.connect_async(host, port, self._broker.keepalive_s)
        return client

    def _set_will(self, client: Client, will: Will, retain: bool) -> None:
        delay = Properties(PacketTypes.WILLMESSAGE) if self._broker.protocol == "5" else None  # type: ignore[no-untyped-call]
        if delay is not None:
            delay.WillDelayInterval = will.delay_s
        client.will_set(will.topic, will.payload, qos=1, retain=retain, properties=delay)

    def _run(self) -> None:
        """The thread: connect, serve, wait, until closed."""
        backoff = Backoff(self._broker.reconnect_max_delay_s)
        while not self._stopping.is_set():
            self._reason, self._connected_at, self._was_cut, self._taken_over = "", 0.0, False, False
            try:
                self._serve_until_closed()
            except (OSError, ConfigError) as error:
                self._reason = self._reason or str(error)
            except Exception:
                log.exception("broker %s: unexpected error; reconnecting", self._broker.name)
                self._reason, self._was_cut = self._reason or "unexpected error", True
            lasted = self._clock() - self._connected_at if self._connected_at else 0.0
            self._lost(lasted)
            self._stopping.wait(backoff.pause_s(lasted, contested=self._rival.contested))
        with self._wake_lock:
            os.close(self._wake_in)
            os.close(self._wake_out)
            self._wake_in = self._wake_out = -1

    def _serve_until_closed(self) -> None:
        """Connect once and serve the socket until it is closed.  Raises OSError, ConfigError."""
        self._client.username_pw_set(*credentials(self._broker))
        self._behind = False
        self._client.reconnect()
        while not self._stopping.is_set():
            sock: Any = self._client.socket()
            if sock is None:
                return
            self._serve(sock)
            if self.connected:
                for _ in range(len(self._calls)):
                    self._guarded(self._calls.popleft())(self._client)
                self._guarded(self._handlers.on_idle)(self._client)
        self._disconnect()

    def _serve(self, sock: Any) -> None:
        """Wait for the socket or a wake-up, then read and write.  Raises ConnectionError."""
        reading = self._handlers.wants_input()
        poll = select.poll()
        poll.register(sock, (select.POLLIN if reading else 0) | (select.POLLOUT if self._client.want_write() else 0))
        poll.register(self._wake_out, select.POLLIN)
        decrypted = reading and isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        ready = dict(poll.poll(0 if decrypted else 1000 * min(1.0, self._broker.keepalive_s / 4)))
        if self._wake_out in ready:
            os.read(self._wake_out, 65_536)
        events = ready.get(sock.fileno(), 0)
        readable = decrypted or bool(events & ~select.POLLOUT)
        if readable and not reading:
            raise ConnectionError(_CLOSED)
        if readable:
            self._client.loop_read()
        if self._client.want_write():
            self._client.loop_write()
        # A response to a ping may wait behind unread messages: its absence then means nothing.
        self._behind = not reading or (self._behind and readable)
        if not self._behind:
            self._client.loop_misc()

    def _disconnect(self) -> None:
        """Send the last messages and DISCONNECT, within the time that `close` allows."""
        if not self.connected:
            return
        if self._before_disconnect is not None:
            self._guarded(self._before_disconnect)(self._client)
        properties = None
        if self._end_session and self._broker.protocol == "5":
            properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 0
        self._client.disconnect(properties=properties)
        sock: Any = self._client.socket()
        while sock is not None and self._client.want_write() and self._clock() < self._disconnect_by:
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            poll.poll(50)
            self._client.loop_write()
            sock = self._client.socket()

    def _lost(self, lasted: float) -> None:
        """After a connection or an attempt: close the socket and log the reason, once for each."""
        sock: Any = self._client.socket()
        if sock is not None:
            sock.close()
        was_connected, self.connected = self.connected, False
        reason = self._reason or _CLOSED
        if self._stopping.is_set():
            return
        closed = was_connected and reason == _CLOSED
        self._rival.ended(lasted, taken_over=self._taken_over, closed=closed)
        if self._rival.contested and (self._taken_over or closed):
            self._log_rival()
        elif was_connected or reason not in self._logged_reasons:
            what = "lost" if was_connected else "not connected"
            name, url = self._broker.name, self._broker.url
            log.warning("broker %s, %s: %s (%s): %s; retrying", name, url, what, self.client_id, reason)
            self._logged_reasons.add(reason)
        if was_connected:
            self.short_connections = self.short_connections + 1 if self._was_cut and lasted < _SOON_S else 0

    def _log_rival(self) -> None:
        """Log that another client has the client id, and what to do; one line in ten minutes."""
        if self._rival_log.allow("") is None:
            return
        found = "" if self._rival.certain else "the broker accepts and soon closes each connection: most likely "
        advice = (
            "delete the file client_id in a state_dir that was copied"
            if is_made(self._broker.client_id)
            else "give each daemon its own client_id in [[broker]]"
        )
        log.error(
            "broker %s: %sanother client connects as %r, and each ends the connection of the other; stop it, or %s; "
            "retrying with pauses of up to %d s",
            self._broker.name, found, self.client_id, advice, CONTESTED_S,
        )  # fmt: skip

    def _on_connect(
        self, client: Client, _: object, flags: ConnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        if code.is_failure and code.value == _NO_RETAIN and self._will is not None:
            self._set_will(client, self._will, retain=False)
            self._reason = "the broker keeps no retained messages: the status is not shown to later subscribers"
            return
        if code.is_failure:
            self._reason = f"the broker refused the connection: {code}; check user, password and client_id"
            return
        self._connected_at = self._clock()
        self.epoch += 1
        self.limits = _limits(properties)
        if self.epoch > 1:
            self.reconnects += 1
        back = "connected again" if self._logged_reasons else "connected"
        level = logging.DEBUG if self._rival.contested else logging.INFO
        log.log(level, "broker %s: %s (%s)", self._broker.name, back, self.client_id)
        self._logged_reasons.clear()
        self._guarded(self._handlers.connected)(client, flags.session_present)
        self.connected = True

    def _on_disconnect(
        self, _client: Client, _: object, flags: DisconnectFlags, code: ReasonCode, __: Properties | None
    ) -> None:
        self._taken_over = flags.is_disconnect_packet_from_server and code.value == _TAKEN_OVER
        # Paho reports a packet that it cannot decode as a protocol error.
        cut = flags.is_disconnect_packet_from_server or code.value in (_UNSPECIFIED, _PROTOCOL_ERROR)
        self._was_cut = cut and not self._taken_over
        no_reason = code.value == _UNSPECIFIED and not flags.is_disconnect_packet_from_server
        self._reason = self._reason or (_CLOSED if no_reason else str(code))

    def _on_socket_open(self, _client: Client, _: object, sock: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _guarded(self, handler: Callable[..., None]) -> Callable[..., None]:
        """The same, but an exception is logged and does not end paho's loop."""

        def call(*arguments: object) -> None:
            try:
                handler(*arguments)
            except Exception:
                log.exception("broker %s: unexpected error", self._broker.name)

        return call


def _limits(properties: Properties | None) -> Limits:
    """The limits in the broker's CONNACK."""
    given = Limits()
    return Limits(
        max_packet_bytes=getattr(properties, "MaximumPacketSize", given.max_packet_bytes),
        receive_maximum=getattr(properties, "ReceiveMaximum", given.receive_maximum),
        max_qos=getattr(properties, "MaximumQoS", given.max_qos),
        retain=bool(getattr(properties, "RetainAvailable", 1)),
        session_expiry_s=getattr(properties, "SessionExpiryInterval", None),
    )
