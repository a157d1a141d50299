"""Line protocol over HTTP, for InfluxDB, Telegraf and VictoriaMetrics.

    write ──▶ lines ──▶ outbox (rows, bounded) ─▶ sender thread ──▶ POST, gzip ──▶ 2xx      acknowledged
                                                       ▲                           4xx      refused: counted, dropped
                                                       └──── pause, the same rows ◀─ 5xx, 408, 429, no connection,
                                                             401, 403, 404, 3xx: the configuration may be corrected

A point of the same stream and time overwrites the one before, so that rows may be sent twice, after a lost response or
a restart.

Decision: the loop never waits for the server.  With ``drop_oldest`` what overflows is counted as dropped; with
``block`` a full queue is not `ready`, and no source is read until it is.
"""

from __future__ import annotations

import gzip
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

import urllib3
from msgspec import Meta

from stream_gru.config.connector import SinkContext, SinkTable
from stream_gru.config.field_types import HttpUrl, Name, PositiveInt, Seconds
from stream_gru.connectors.credentials import read_secret
from stream_gru.connectors.sinks.encoders import LineEncoder, encode_once
from stream_gru.connectors.sinks.outbox import Outbox
from stream_gru.core.commit_records import FlushResult, OutboxRow, OutboxState, SinkCheckpoint
from stream_gru.core.errors import ConfigError, SinkUnavailable, StateError
from stream_gru.core.types import PredictionBatch, SinkHealth

log = logging.getLogger(__name__)

_MAX_ROWS, _MAX_BYTES = 5000, 4_000_000  # of one request, before compression
_GATHER_ROWS, _GATHER_S = 500, 0.2  # after a request, before the next
_CLOSE_S = 1.0
_MAX_PAUSE_S, _MAX_RETRY_AFTER_S = 30.0, 300.0
_LOGGED_BYTES = 200
_RESPONSE_BYTES = 65_536
_UNAUTHORIZED = (401, 403)
_ADVICE = {
    **dict.fromkeys(_UNAUTHORIZED, "check token_file"),
    404: "check url: database or bucket",
    **dict.fromkeys(range(300, 400), "check url: it redirects to another address"),
}


class InfluxSinkConfig(SinkTable, frozen=True, kw_only=True, tag="influx"):
    """Line protocol over HTTP: InfluxDB, Telegraf, VictoriaMetrics."""

    url: Annotated[
        HttpUrl,
        Meta(
            description="The whole address to write to, with database or bucket.",
            examples=["http://127.0.0.1:8086/api/v2/write?org=home&bucket=sensors"],
        ),
    ]
    measurement: Annotated[Name, Meta(description="Name of the measurement.")] = "stream_gru"
    token_file: Annotated[
        str, Meta(description="File with the token, or the name of a systemd credential; empty: no token.")
    ] = ""
    queue_size: Annotated[PositiveInt, Meta(description="Outputs that wait for the server at most.")] = 10_000
    queue_bytes: Annotated[PositiveInt, Meta(description="The same limit in bytes.")] = 16_777_216
    when_full: Annotated[
        Literal["block", "drop_oldest"],
        Meta(description='When the queue is full: "block" lets the inputs wait; "drop_oldest" drops outputs, counted.'),
    ] = "drop_oldest"
    timeout_s: Annotated[Seconds, Meta(description="Seconds to wait for a response of the server.")] = 5.0

    @property
    def secret_keys(self) -> Sequence[str]:
        """The token."""
        return ("token_file",)

    def verify(self) -> None:
        """The token can be read."""
        if self.token_file:
            read_secret(self.token_file)

    def build(self, context: SinkContext) -> InfluxSink:
        """Return the sink."""
        return InfluxSink(self, immediate=context.immediate)

    def delivery_warnings(self) -> Iterator[str]:
        """A queue that drops loses outputs."""
        if self.when_full == "drop_oldest":
            yield 'when_full = "drop_oldest": outputs are lost while the server is down for long'


@dataclass(frozen=True, slots=True)
class Response:
    """Status, beginning of the body, and how long the server asks to wait (0: it does not say)."""

    status: int
    text: str
    retry_after_s: float

    @property
    def accepted(self) -> bool:
        """Whether the server has the rows."""
        return 200 <= self.status < 300

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later, perhaps after the configuration is corrected."""
        return self.status in (408, 429) or self.status >= 500 or self.status in _ADVICE

    def __str__(self) -> str:
        return f"{self.status}: {' '.join(self.text.split()) or 'no text'}"


class InfluxClient:
    """One connection to the write address, opened when needed.  Raises urllib3.exceptions.HTTPError."""

    def __init__(self, url: str, token: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Encoding": "gzip"}
        host, port, timeout = parts.hostname or "", parts.port, urllib3.Timeout(timeout_s)
        self._pool: urllib3.HTTPConnectionPool
        if parts.scheme == "https":
            context = ssl.create_default_context()
            self._pool = urllib3.HTTPSConnectionPool(host, port, timeout=timeout, ssl_context=context)
        else:
            self._pool = urllib3.HTTPConnectionPool(host, port, timeout=timeout)
        self.use(token)

    def use(self, token: str) -> None:
        """Send this token from now on; empty: none."""
        self._headers.pop("Authorization", None)
        if token:
            self._headers["Authorization"] = f"Token {token}"

    def post(self, body: bytes) -> Response:
        """Send lines and return the response."""
        data = gzip.compress(body, 6, mtime=0)
        response = self._pool.urlopen(
            "POST", self._target, data, self._headers, retries=False, redirect=False, preload_content=False
        )
        try:
            text = response.read(_RESPONSE_BYTES)
            if response.read(1):  # longer than a response of these servers: the connection is not used again
                response.close()
        except BaseException:
            response.close()
            raise
        finally:
            response.release_conn()
        return Response(
            response.status,
            text[:_LOGGED_BYTES].decode(errors="replace"),
            _seconds(response.headers.get("Retry-After", "")),
        )

    def close(self) -> None:
        """Close the connection."""
        self._pool.close()


class InfluxSink:
    """Sends rows from a thread of its own.  ``immediate``: a row may be sent before it is stored.

    ``clock``: monotonic seconds; ``pause_s``: first pause after a failure, doubled up to 30 s, unless the server sets
    one.  ``gather_s``: how long rows are gathered after a request for the next one; 500 rows, or `close`, end it.
    Raises ConfigError for an invalid address.
    """

    def __init__(
        self,
        config: InfluxSinkConfig,
        *,
        immediate: bool = False,
        clock: Callable[[], float] = time.monotonic,
        pause_s: float = 0.5,
        gather_s: float = _GATHER_S,
    ) -> None:
        _check_address(config.url)
        self._config, self._clock, self._first_pause_s = config, clock, pause_s
        self._gather_s, self._next_s = gather_s, float("-inf")
        self._encoder = LineEncoder(config.measurement)
        self._outbox = Outbox(
            config.queue_size,
            max_bytes=config.queue_bytes,
            drop_oldest=config.when_full == "drop_oldest",
            immediate=immediate,
        )
        self._changed = self._outbox.changed
        self._sent: list[OutboxRow] = []  # rows of the current request
        self._closing = False
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None
        self._was_reachable = self._unreachable = False
        self._reasons: set[str] = set()  # logged reasons of the current outage
        self._refusals: set[int] = set()  # logged statuses
        self._reconnects = 0

    def open(self, checkpoint: SinkCheckpoint | None) -> None:
        """Read the token and start the thread, without a connection.  Rows of ``checkpoint`` are sent first.

        Raises ConfigError, StateError for outputs of another kind.
        """
        if checkpoint is not None and any(row.topic for row in checkpoint.unacked):
            raise StateError(
                f"{self._config.url}: expected stored lines, got outputs for a broker; give the sink a new name"
            )
        client = InfluxClient(self._config.url, self._token(), self._config.timeout_s)
        self._outbox.resume(checkpoint)
        self._closing = False
        self._thread = threading.Thread(target=self._run, args=(client,), name="influx", daemon=True)
        self._thread.start()

    def ready(self) -> bool:
        """Whether the queue has room."""
        return self._outbox.ready

    def write(self, batch: PredictionBatch) -> None:
        """Queue all rows; a full queue drops its oldest ones with ``drop_oldest``.  Raises SinkUnavailable."""
        if self._thread is None:
            raise SinkUnavailable(f"{self._config.url}: not open")
        self._outbox.put([OutboxRow("", line) for line in encode_once(self._encoder, batch).splitlines(keepends=True)])

    def flush(self) -> FlushResult:
        """Return the rows to store until the server has them.  Raises what ended the sender."""
        if self._fault is not None:
            raise RuntimeError("the sender thread has ended") from self._fault
        return self._outbox.flush()

    def committed(self) -> None:
        """Send the rows of the last `flush`."""
        self._outbox.committed()

    def close(self) -> None:
        """Send what can be sent within a second, then end the thread."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        thread.join(_CLOSE_S)
        if len(self._outbox):
            then = "; the store keeps them" if self._outbox.durable else ""
            log.warning(
                "%s: %d outputs were not acknowledged before the end%s", self._config.url, len(self._outbox), then
            )

    def handoff(self) -> OutboxState:
        """After `close`: unfinished rows, for the sink that takes the place of this one."""
        return self._outbox.handoff()

    def adopt(self, state: OutboxState) -> None:
        """Before the first `write`: send these rows first."""
        self._outbox.adopt(state)

    def health(self) -> SinkHealth:
        """Whether the server responds, and how many rows are queued."""
        with self._changed:
            return SinkHealth(
                connected=self._thread is not None and self._was_reachable and not self._unreachable,
                queued=len(self._outbox),
                failed=self._outbox.failed,
                dropped=self._outbox.dropped,
                reconnects=self._reconnects,
            )

    def _token(self) -> str:
        return read_secret(self._config.token_file) if self._config.token_file else ""

    def _run(self, client: InfluxClient) -> None:
        """The thread: one request after the other, until closed."""
        try:
            while self._next_rows():
                if not self._deliver(client):
                    return
        except BaseException as error:
            with self._changed:
                self._fault = error
        finally:
            client.close()
            with self._changed:
                self._changed.notify_all()

    def _next_rows(self) -> bool:
        """Take the rows of the next request, once they are due or many; False when closed and empty."""
        # Half of a small queue at most, so that some rows can be dropped while a request hangs.
        most = min(_MAX_ROWS, max(1, self._config.queue_size // 2))
        with self._changed:
            while not self._closing:
                left_s, sendable = self._next_s - self._clock(), self._outbox.sendable
                if sendable and (left_s <= 0 or sendable >= min(_GATHER_ROWS, most)):
                    break
                self._changed.wait(left_s if sendable else None)
            size = 0
            while len(self._sent) < most and size < _MAX_BYTES and (row := self._outbox.take()) is not None:
                self._sent.append(row)
                size += len(row.payload)
        return bool(self._sent)

    def _deliver(self, client: InfluxClient) -> bool:
        """Send the rows until they are accepted or refused; False when closed meanwhile."""
        body, pause_s = b"".join(row.payload for row in self._sent), self._first_pause_s
        while True:
            response = self._post(client, body)
            if response is not None and not response.retryable:
                self._finish(response)
                self._next_s = self._clock() + self._gather_s
                return True
            retry_after_s = 0.0 if response is None else min(response.retry_after_s, _MAX_RETRY_AFTER_S)
            if not self._rest(retry_after_s or pause_s):
                return False
            if response is not None and response.status in _UNAUTHORIZED:
                with suppress(ConfigError):
                    client.use(self._token())
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _post(self, client: InfluxClient, body: bytes) -> Response | None:
        """Send once; None without a response.  Each reason of an outage is logged once."""
        kind = reason = ""
        try:
            response = client.post(body)
            if response.retryable:
                kind = str(response.status)
                reason = "; ".join(filter(None, (f"responded {response}", _ADVICE.get(response.status))))
        except (OSError, urllib3.exceptions.HTTPError) as error:
            response, kind = None, type(error).__name__
            reason = str(error) or type(error).__name__
        with self._changed:
            if kind and kind not in self._reasons:
                self._reasons.add(kind)
                log.warning("%s: %s; retrying", self._config.url, reason)
            if not kind and self._unreachable:
                self._reasons.clear()
                self._reconnects += self._was_reachable
                log.info("%s: responds%s", self._config.url, " again" if self._was_reachable else "")
            self._was_reachable, self._unreachable = self._was_reachable or not kind, bool(kind)
            self._changed.notify_all()
        return response

    def _finish(self, response: Response) -> None:
        """The rows were accepted, or refused for good."""
        if not response.accepted and response.status not in self._refusals:
            self._refusals.add(response.status)
            log.error("%s: refused outputs with %s; logged once", self._config.url, response)
        with self._changed:
            for row in self._sent:
                (self._outbox.ack if response.accepted else self._outbox.nack)(row)
            self._sent.clear()

    def _rest(self, pause_s: float) -> bool:
        """Wait before the next attempt; False when closed."""
        end = self._clock() + pause_s
        with self._changed:
            while (left_s := end - self._clock()) > 0 and not self._closing:
                self._changed.wait(left_s)
            return not self._closing


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"sink.url: expected an address such as http://127.0.0.1:8086/write?db=sensors, got {url!r}")


def _seconds(text: str) -> float:
    """``Retry-After`` in seconds; these servers do not send its other form, a date."""
    return float(text) if text.isdecimal() else 0.0
