"""Line protocol over HTTP, for InfluxDB, Telegraf and VictoriaMetrics.

    write ──▶ lines ──▶ outbox (rows, bounded) ─▶ sender thread ──▶ POST, gzip ──▶ 2xx      confirmed
                                                       ▲                           4xx      refused: counted, dropped
                                                       └──── pause, the same rows ◀─ 5xx, 408, 429, no connection,
                                                             401, 403, 404, 3xx: somebody has to mend the configuration

Points of one stream and time overwrite each other there, so that sending rows twice, after a lost answer or a restart,
does no harm.

Decision: nobody waits for the server.  With ``drop_oldest`` what overflows is counted as discarded; with ``block`` a
full queue says that it is not `ready`, and nothing is read until it is.
"""

from __future__ import annotations

import gzip
import http.client
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from stream_gru.config.connector import SinkContext, SinkTable
from stream_gru.config.field_types import HttpUrl, Name, PositiveInt, Seconds
from stream_gru.connectors.credentials import read_secret
from stream_gru.connectors.sinks.encode_line_protocol import LineEncoder
from stream_gru.connectors.sinks.encoders import encode_once
from stream_gru.connectors.sinks.outbox import Outbox
from stream_gru.core.commit_records import FlushResult, OutboxRow, OutboxState, SinkCheckpoint
from stream_gru.core.errors import ConfigError, SinkUnavailable, StateError
from stream_gru.core.types import PredictionBatch, SinkHealth

log = logging.getLogger(__name__)

_MOST_ROWS, _MOST_BYTES = 5000, 4_000_000  # of one request, before compression
_GATHER_ROWS, _GATHER_S = 500, 0.2  # after a request, before the next
_CLOSE_S = 1.0
_LONGEST_PAUSE_S, _LONGEST_ASKED_S = 30.0, 300.0
_TOLD_BYTES = 200
_ANSWER_BYTES = 65_536
_NOT_LET_IN = (401, 403)
_MENDABLE = {
    **dict.fromkeys(_NOT_LET_IN, "look at token_file"),
    404: "look at url: database or bucket",
    **dict.fromkeys(range(300, 400), "look at url: it is the address of something else"),
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
            yield 'when_full = "drop_oldest": outputs are lost while the server is away for long'


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said: status, the beginning of the body, and how long it asks to wait (0: it does not say)."""

    status: int
    text: str
    retry_after_s: float

    @property
    def accepted(self) -> bool:
        """Whether the rows are there."""
        return 200 <= self.status < 300

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later, perhaps when somebody has mended something."""
        return self.status in (408, 429) or self.status >= 500 or self.status in _MENDABLE

    @property
    def said(self) -> str:
        """Status and text in one line."""
        return f"{self.status}: {' '.join(self.text.split())}" if self.text.strip() else f"{self.status} without a word"


class Poster:
    """One connection to one address, opened when needed.  Raises OSError and http.client.HTTPException."""

    def __init__(self, url: str, token: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Encoding": "gzip"}
        self._connection: http.client.HTTPConnection | None = None
        self.use(token)

    def use(self, token: str) -> None:
        """Show this token from now on; empty: none."""
        self._headers.pop("Authorization", None)
        if token:
            self._headers["Authorization"] = f"Token {token}"

    def post(self, body: bytes) -> Answer:
        """Send lines and return the answer."""
        if self._connection is None:
            self._connection = self._connect()
        try:
            self._connection.request("POST", self._target, gzip.compress(body, 6, mtime=0), self._headers)
            response = self._connection.getresponse()
            text = response.read(_ANSWER_BYTES)
        except BaseException:
            self.close()
            raise
        if not response.isclosed():  # a longer answer than anybody needs
            self.close()
        return Answer(
            response.status,
            text[:_TOLD_BYTES].decode(errors="replace"),
            _seconds(response.headers.get("Retry-After", "")),
        )

    def close(self) -> None:
        """Let the connection go."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._tls)


class InfluxSink:
    """Sends rows from a thread of its own.  ``immediate``: a row may be sent before it is stored.

    ``clock``: monotonic seconds; ``pause_s``: first pause after a failure; it doubles up to 30 s, unless the server
    says how long.  ``gather_s``: how long, after a request, rows may be gathered for the next one; 500 of them, or
    `close`, end that.
    Raises ConfigError for an address that cannot be.
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
        self._outbox = Outbox(config.queue_size, drop_oldest=config.when_full == "drop_oldest", immediate=immediate)
        self._changed = self._outbox.changed
        self._sent: list[OutboxRow] = []  # rows of the request under way
        self._closing = False
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None
        self._answered = self._away = False
        self._reasons: set[str] = set()  # why it is away, as far as that was told
        self._refusals: set[int] = set()  # statuses that were told
        self._reconnects = 0

    def open(self, checkpoint: SinkCheckpoint | None) -> None:
        """Read the token and start the thread; the server need not be there.  What ``checkpoint`` has goes first.

        Raises ConfigError, StateError for outputs of another kind.
        """
        if checkpoint is not None and any(row.topic for row in checkpoint.unacked):
            raise StateError(
                f"{self._config.url}: expected stored lines, got outputs for a broker; "
                f"give the sink a name that none had before"
            )
        poster = Poster(self._config.url, self._token(), self._config.timeout_s)
        self._outbox.resume(checkpoint)
        self._closing = False
        self._thread = threading.Thread(target=self._run, args=(poster,), name="influx", daemon=True)
        self._thread.start()

    def ready(self) -> bool:
        """Whether the queue has room."""
        return self._outbox.ready

    def write(self, batch: PredictionBatch) -> None:
        """Queue all rows; a full queue loses its oldest ones, if it may.  Raises SinkUnavailable."""
        if self._thread is None:
            raise SinkUnavailable(f"{self._config.url}: not open")
        self._outbox.put([OutboxRow("", line) for line in encode_once(self._encoder, batch).splitlines(keepends=True)])

    def flush(self) -> FlushResult:
        """Return what the store shall keep until the server has it.  Raises what ended the sender."""
        if self._fault is not None:
            raise RuntimeError("the sender of outputs has ended") from self._fault
        return self._outbox.flush()

    def committed(self) -> None:
        """Send what the last `flush` told."""
        self._outbox.committed()

    def close(self) -> None:
        """Send what can be sent within a second and let go."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        thread.join(_CLOSE_S)
        if len(self._outbox):
            then = "; the store keeps them" if self._outbox.durable else ""
            log.warning("%s: %d outputs were not confirmed before the end%s", self._config.url, len(self._outbox), then)

    def handoff(self) -> OutboxState:
        """After `close`: what is not finished, for a sink that takes the place of this one."""
        return self._outbox.handoff()

    def adopt(self, state: OutboxState) -> None:
        """Before anything is written: send these first."""
        self._outbox.adopt(state)

    def health(self) -> SinkHealth:
        """How it is doing."""
        with self._changed:
            return SinkHealth(
                connected=self._thread is not None and self._answered and not self._away,
                queued=len(self._outbox),
                failed=self._outbox.failed,
                dropped=self._outbox.discarded,
                reconnects=self._reconnects,
            )

    def _token(self) -> str:
        return read_secret(self._config.token_file) if self._config.token_file else ""

    def _run(self, poster: Poster) -> None:
        """The sender: one request after the other, until closed."""
        try:
            while self._next_rows():
                if not self._deliver(poster):
                    return
        except BaseException as error:
            with self._changed:
                self._fault = error
        finally:
            poster.close()
            with self._changed:
                self._changed.notify_all()

    def _next_rows(self) -> bool:
        """Take the rows of the next request, once they are enough or due; False when closed and empty."""
        # Half of a small queue at most, so that there is something to give up while a request hangs.
        most = min(_MOST_ROWS, max(1, self._config.queue_size // 2))
        with self._changed:
            while not self._closing:
                left_s, sendable = self._next_s - self._clock(), self._outbox.sendable
                if sendable and (left_s <= 0 or sendable >= min(_GATHER_ROWS, most)):
                    break
                self._changed.wait(left_s if sendable else None)
            size = 0
            while len(self._sent) < most and size < _MOST_BYTES and (row := self._outbox.take()) is not None:
                self._sent.append(row)
                size += len(row.payload)
        return bool(self._sent)

    def _deliver(self, poster: Poster) -> bool:
        """Send the rows under way until they are accepted or refused; False when closed meanwhile."""
        body, pause_s = b"".join(row.payload for row in self._sent), self._first_pause_s
        while True:
            answer = self._post(poster, body)
            if answer is not None and not answer.passing:
                self._settle(answer)
                self._next_s = self._clock() + self._gather_s
                return True
            asked_s = 0.0 if answer is None else min(answer.retry_after_s, _LONGEST_ASKED_S)
            if not self._rest(asked_s or pause_s):
                return False
            if answer is not None and answer.status in _NOT_LET_IN:
                with suppress(ConfigError):
                    poster.use(self._token())
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _post(self, poster: Poster, body: bytes) -> Answer | None:
        """Send once; None when there was no answer.  Of a row of failures each reason is logged once."""
        kind = reason = ""
        try:
            answer = poster.post(body)
            if answer.passing:
                kind = str(answer.status)
                reason = "; ".join(filter(None, (f"answered {answer.said}", _MENDABLE.get(answer.status))))
        except (OSError, http.client.HTTPException) as error:
            answer, kind = None, f"{type(error).__name__} {getattr(error, 'errno', '')}"
            reason = str(error) or type(error).__name__
        with self._changed:
            if kind and kind not in self._reasons:
                self._reasons.add(kind)
                log.warning("%s: %s; trying again", self._config.url, reason)
            if not kind and self._away:
                self._reasons.clear()
                self._reconnects += self._answered
                log.info("%s: answers%s", self._config.url, " again" if self._answered else "")
            self._answered, self._away = self._answered or not kind, bool(kind)
            self._changed.notify_all()
        return answer

    def _settle(self, answer: Answer) -> None:
        """The server has the rows, or never will."""
        if not answer.accepted and answer.status not in self._refusals:
            self._refusals.add(answer.status)
            log.error("%s: refused outputs with %s; said once", self._config.url, answer.said)
        with self._changed:
            for row in self._sent:
                (self._outbox.ack if answer.accepted else self._outbox.nack)(row)
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
    """What ``Retry-After`` says in seconds; its other form, a date, is not used by these servers."""
    return float(text) if text.isdecimal() else 0.0
