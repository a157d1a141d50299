"""One connection to a broker: a thread that connects, serves the socket, and connects again, for ever.

    owner's threads ── wake, close ──▶ thread of the connection ── paho ──▶ socket ──▶ broker
                                             │ Handlers
                                             ▼
                                           owner

Decision: the loop over paho's socket is our own.  Paho's thread ends with the first exception of a callback while it
still says that it is connected, its pauses between attempts are the same for every client and begin anew whenever the
broker lets us in, stopping it can wait for ever on a frozen broker, and an acknowledgement from another thread can slip
into the next connection.  Here every call of paho is made by one thread.
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
from stream_gru.connectors.mqtt.auth import FreshContext, credentials, is_tls, tls_context, warn_of_risks
from stream_gru.connectors.mqtt.paho_client import Handlers, Limits, TolerantClient, Will, refusal
from stream_gru.connectors.mqtt.reconnect import Backoff
from stream_gru.core.errors import ConfigError, TakenOver

log = logging.getLogger(__name__)

_ROOM_FOR_TOPIC_BYTES = 65_536
_CLOSED = "the broker closed the connection"
_TAKEN_OVER = 0x8E
_UNSPECIFIED = 0x80
_PROTOCOL_ERROR = 0x82
_NO_RETAIN = 0x9A
# A connection that is cut sooner may have been cut for what was said on it.
_SOON_S = 60.0
# So often in a row cut sooner than this, and let in again at the first attempt: no broker that is being restarted.
_THROWN_OUT = 5
_THROWN_OUT_WITHIN_S = 10.0
# One take-over can be an echo of our own earlier connection that a frozen broker saw late; two are somebody else.
_TAKE_OVERS = 2
_TAKE_OVERS_WITHIN_S = 60.0


class Connection:
    """The connection of one client id.  ``payload_bytes``: the longest payload that shall come in.

    ``epoch`` counts connections, ``cuts`` how often in a row the broker let us in and the connection soon ended, closed
    by the broker or because of an answer that was not understood.
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
        self.taken_over = False
        self.limits = Limits()
        self._broker, self._handlers, self._clock, self._will = broker, handlers, clock, will
        self._client = self._make_client(payload_bytes, will)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._wake_in, self._wake_out = -1, -1
        self._wake_lock = threading.Lock()
        self._farewell: Callable[[Client], None] | None = None
        self._forget = False
        self._later: deque[Callable[[Client], None]] = deque()
        self._told: set[str] = set()
        self._reason = ""
        self._take_overs: deque[float] = deque(maxlen=_TAKE_OVERS)
        self._since = 0.0
        self.cuts = 0
        self._thrown_out = 0
        self._cut = False
        self._leave_by = 0.0
        self._behind = False

    @property
    def alive(self) -> bool:
        """Whether it works at being connected."""
        return self._thread is not None and self._thread.is_alive()

    def open(self) -> None:
        """Begin to connect; returns at once.  Raises ConfigError when user, password or certificates cannot be read."""
        if self._thread is not None:
            return
        credentials(self._broker)
        if is_tls(self._broker):
            tls_context(self._broker)
        warn_of_risks(self._broker)
        self._stopping.clear()
        self._wake_out, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=f"mqtt {self.client_id}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Have the thread look at its handlers now; may be called by any thread."""
        with self._wake_lock:
            if self._wake_in >= 0:
                with suppress(BlockingIOError):  # full: it is about to wake up anyway
                    os.write(self._wake_in, b"\0")

    def later(self, work: Callable[[Client], None]) -> None:
        """Have ``work`` done with the client on the thread of the connection, once it is connected."""
        self._later.append(work)
        self.wake()

    def acknowledge(self, message: MQTTMessage) -> None:
        """Tell the broker that a message is done with; only in a handler."""
        if message.qos:
            self._client.ack(message.mid, message.qos)

    def require_own_name(self, who: str) -> None:
        """Raise TakenOver when another client goes by our name."""
        if self.taken_over:
            raise TakenOver(
                f"{who}: another client is connected as {self.client_id!r}; "
                f"stop it, or give each daemon its own client_id in [[broker]]"
            )

    def close(
        self, farewell: Callable[[Client], None] | None = None, timeout_s: float = 1.0, *, forget: bool = False
    ) -> None:
        """Say ``farewell`` if connected, disconnect and end the thread, within ``timeout_s``; may be called twice.

        ``forget``: the broker shall not keep the session (MQTT 5; one of 3.1.1 cannot be told).
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._forget = forget
        self._farewell, self._leave_by = farewell, self._clock() + 0.8 * timeout_s
        self._stopping.set()
        self.wake()
        if thread is not threading.current_thread():
            thread.join(timeout_s)  # one that is still in a handshake ends by itself a little later

    def _make_client(self, payload_bytes: int, will: Will | None) -> Client:
        """Paho's client with all that stays the same over connections."""
        newest = self._broker.protocol == "5"
        client = TolerantClient(
            CallbackAPIVersion.VERSION2,
            self.client_id,
            clean_session=None if newest else False,
            protocol=MQTTProtocolVersion.MQTTv5 if newest else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        # The owner bounds what is under way; without this paho would hold back what the owner believes sent.
        client.max_inflight_messages_set(0)
        if is_tls(self._broker):
            client.tls_set_context(FreshContext.of(self._broker))
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
        # Tells paho that the socket is served by somebody else: it must not write from the caller's thread.
        client.on_socket_register_write = lambda _c, _u, _s: None
        host, port = self._broker.host_and_port()
        if newest:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = self._broker.session_expiry_s
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
        """The life of the thread."""
        backoff = Backoff(self._broker.reconnect_max_delay_s)
        while not self._stopping.is_set() and not self.taken_over:
            self._reason, self._since, self._cut = "", 0.0, False
            try:
                self._attend()
            except (OSError, ConfigError) as error:
                self._reason = self._reason or str(error)
            except Exception:
                log.exception("broker %s: unexpected error; the connection is made anew", self._broker.name)
                self._reason, self._cut = self._reason or "unexpected error", True
            lasted = self._clock() - self._since if self._since else 0.0
            self._lost(lasted)
            if not self.taken_over:
                self._stopping.wait(backoff.pause_s(lasted))
        with self._wake_lock:
            os.close(self._wake_in)
            os.close(self._wake_out)
            self._wake_in = self._wake_out = -1

    def _attend(self) -> None:
        """Connect once and serve the socket until it is gone or closing was asked for.  Raises OSError, ConfigError."""
        self._client.username_pw_set(*credentials(self._broker))
        self._behind = False
        self._client.reconnect()
        while not self._stopping.is_set():
            sock: Any = self._client.socket()
            if sock is None:
                return
            self._serve(sock)
            if self.connected:
                for _ in range(len(self._later)):
                    self._guarded(self._later.popleft())(self._client)
                self._guarded(self._handlers.turn)(self._client)
        self._leave()

    def _serve(self, sock: Any) -> None:
        """Wait for the socket or a wake-up, and do what is due.  Raises ConnectionError."""
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
        # An answer to a ping may stand behind what was not read yet: its absence means nothing then.
        self._behind = not reading or (self._behind and readable)
        if not self._behind:
            self._client.loop_misc()

    def _leave(self) -> None:
        """Take leave, for as long as `close` allows."""
        if not self.connected:
            return
        if self._farewell is not None:
            self._guarded(self._farewell)(self._client)
        properties = None
        if self._forget and self._broker.protocol == "5":
            properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 0
        self._client.disconnect(properties=properties)
        sock: Any = self._client.socket()
        while sock is not None and self._client.want_write() and self._clock() < self._leave_by:
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            poll.poll(50)
            self._client.loop_write()
            sock = self._client.socket()

    def _lost(self, lasted: float) -> None:
        """After a connection, or an attempt: close what is open and say why, once for each reason."""
        sock: Any = self._client.socket()
        if sock is not None:
            sock.close()
        was_connected, self.connected = self.connected, False
        reason = self._reason or _CLOSED
        if self._stopping.is_set():
            return
        name, own = self._broker.name, self.client_id
        if self.taken_over:
            log.error("broker %s: another client connects as %r; give each daemon its own client_id", name, own)
        elif was_connected or reason not in self._told:
            what = "lost" if was_connected else "not connected"
            log.warning("broker %s: %s (%s): %s; trying again", name, what, own, reason)
            self._told.add(reason)
        if was_connected:
            self.cuts = self.cuts + 1 if self._cut and lasted < _SOON_S else 0
        thrown_out = was_connected and reason == _CLOSED and lasted < _THROWN_OUT_WITHIN_S
        self._thrown_out = self._thrown_out + 1 if thrown_out else 0
        if self._thrown_out == _THROWN_OUT:
            log.warning(
                "broker %s: it lets us in and soon closes the connection, again and again; perhaps another client "
                "connects as %r too: give each daemon its own client_id",
                name, own,
            )  # fmt: skip

    def _on_connect(
        self, client: Client, _: object, flags: ConnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        if code.is_failure and code.value == _NO_RETAIN and self._will is not None:
            self._set_will(client, self._will, retain=False)
            self._reason = "the broker keeps no retained messages: nobody who comes later will see our status"
            return
        if code.is_failure:
            self._reason = f"the broker refused us: {code}; look at user, password and client_id"
            return
        self._since = self._clock()
        self.epoch += 1
        self.limits = _limits(properties)
        if self.epoch > 1:
            self.reconnects += 1
        back = "connected again" if self._told else "connected"
        log.info("broker %s: %s (%s)", self._broker.name, back, self.client_id)
        self._told.clear()
        self._guarded(self._handlers.connected)(client, flags.session_present)
        self.connected = True

    def _on_disconnect(
        self, _client: Client, _: object, flags: DisconnectFlags, code: ReasonCode, __: Properties | None
    ) -> None:
        # A protocol error is paho's word for an answer that it cannot read: what was answered may come again.
        self._cut = flags.is_disconnect_packet_from_server or code.value in (_UNSPECIFIED, _PROTOCOL_ERROR)
        unsaid = code.value == _UNSPECIFIED and not flags.is_disconnect_packet_from_server
        self._reason = self._reason or (_CLOSED if unsaid else str(code))
        if flags.is_disconnect_packet_from_server and code.value == _TAKEN_OVER:
            self._take_overs.append(self._clock())
            recent = [when for when in self._take_overs if self._clock() - when <= _TAKE_OVERS_WITHIN_S]
            self.taken_over = len(recent) >= _TAKE_OVERS

    def _on_socket_open(self, _client: Client, _: object, sock: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _guarded(self, handler: Callable[..., None]) -> Callable[..., None]:
        """The same, but an exception ends in the log and not in paho's loop."""

        def call(*arguments: object) -> None:
            try:
                handler(*arguments)
            except Exception:
                log.exception("broker %s: unexpected error", self._broker.name)

        return call


def _limits(properties: Properties | None) -> Limits:
    """What the broker's answer to CONNECT says."""
    given = Limits()
    return Limits(
        max_packet_bytes=getattr(properties, "MaximumPacketSize", given.max_packet_bytes),
        receive_maximum=getattr(properties, "ReceiveMaximum", given.receive_maximum),
        max_qos=getattr(properties, "MaximumQoS", given.max_qos),
        retain=bool(getattr(properties, "RetainAvailable", 1)),
        session_expiry_s=getattr(properties, "SessionExpiryInterval", None),
    )
