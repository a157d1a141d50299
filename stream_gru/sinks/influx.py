"""Line protocol over HTTP, for InfluxDB, Telegraf and VictoriaMetrics.

    write ──▶ lines ──▶ queue (rows, bounded) ──▶ sender thread ──▶ POST, gzip ──▶ 2xx      confirmed
                                                       ▲                           4xx      refused: counted, dropped
                                                       └──── pause, the same rows ◀─ 5xx, 408, 429, no connection,
                                                             401, 403, 404, 3xx: somebody has to mend the configuration

Points of one stream and time overwrite each other there, so that sending rows twice after a lost answer does no harm.

Decision: with ``drop_oldest`` a server that cannot be reached holds up nobody: `flush` then does not wait for it, and
what overflows is counted as discarded.  With ``block`` nothing is acknowledged before the server has it.
"""

from __future__ import annotations

import gzip
import http.client
import logging
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from stream_gru.config.live import InfluxSinkConfig
from stream_gru.errors import ConfigError, SinkPending, SinkUnavailable
from stream_gru.secrets import read_secret
from stream_gru.sinks.encode_line import LineEncoder
from stream_gru.types import PredictionBatch, SinkHealth

log = logging.getLogger(__name__)

_MOST_ROWS, _MOST_BYTES = 5000, 4_000_000  # of one request, before compression
_GATHER_ROWS, _GATHER_S = 500, 0.2  # after a request, before the next
_CLOSE_S = 1.0
_LONGEST_PAUSE_S, _LONGEST_ASKED_S = 30.0, 300.0
_WAIT_S = 0.1
_TOLD_BYTES = 200
_ANSWER_BYTES = 65_536
_NOT_LET_IN = (401, 403)
_MENDABLE = {
    **dict.fromkeys(_NOT_LET_IN, "look at token_file"),
    404: "look at url: database or bucket",
    **dict.fromkeys(range(300, 400), "look at url: it is the address of something else"),
}


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
    """Sends rows from a thread of its own.  ``clock``: monotonic seconds; ``stopping``: the daemon is about to end.

    ``pause_s``: first pause after a failure; it doubles up to 30 s, unless the server says how long.  ``gather_s``: how
    long, after a request, rows may be gathered for the next one; 500 of them, or `close`, end that.
    Raises ConfigError for an address that cannot be.
    """

    def __init__(
        self,
        config: InfluxSinkConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        stopping: Callable[[], bool] = lambda: False,
        pause_s: float = 0.5,
        gather_s: float = _GATHER_S,
    ) -> None:
        _check_address(config.url)
        self._config, self._clock, self._stopping, self._first_pause_s = config, clock, stopping, pause_s
        self._gather_s, self._next_s = gather_s, float("-inf")
        self._encoder = LineEncoder(config.measurement)
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._sent: list[bytes] = []  # rows under way
        self._taken = self._mark = 0  # rows ever taken, and at the first flush that is pending
        self._closing = False
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None
        self._answered = self._away = False
        self._reasons: set[str] = set()  # why it is away, as far as that was told
        self._refusals: set[int] = set()  # statuses that were told
        self._failed = self._discarded = self._reconnects = self._confirmed_bytes = 0

    def open(self) -> None:
        """Read the token and start the thread; the server need not be there.  Raises ConfigError."""
        poster = Poster(self._config.url, self._token(), self._config.timeout_s)
        self._closing = False
        self._thread = threading.Thread(target=self._run, args=(poster,), name="influx", daemon=True)
        self._thread.start()

    def write(self, batch: PredictionBatch) -> None:
        """Queue all rows; a full queue blocks or loses its oldest rows, as configured.  Raises SinkUnavailable."""
        if self._thread is None:
            raise SinkUnavailable(f"{self._config.url}: not open")
        for line in self._encoder.lines(batch):
            stopping = False
            while not self._put(line, at_any_rate=stopping):
                stopping = self._stopping()
        with self._changed:
            self._changed.notify_all()

    def flush(self) -> int:
        """Return how many bytes the server has confirmed.

        Raises SinkPending while rows written before the first flush that was pending are not confirmed, and raises what
        ended the sender.
        """
        with self._changed:
            self._raise_fault()
            self._mark = self._mark or self._taken
            if self._taken - self._pending < self._mark and not self._holds_up_nobody:
                raise SinkPending(f"{self._config.url}: {self._pending} outputs are not confirmed yet")
            self._mark = 0
            return self._confirmed_bytes

    def close(self) -> None:
        """Send what can be sent within a second and let go."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        thread.join(_CLOSE_S)
        with self._changed:
            if self._pending:
                log.warning("%s: %d outputs were not confirmed before the end", self._config.url, self._pending)

    def left(self) -> list[bytes]:
        """After `close`: rows that were never confirmed, for a sink that takes the place of this one."""
        with self._changed:
            rows = [*self._sent, *self._waiting]
            self._waiting.clear()
        return rows

    def take_over(self, rows: list[bytes]) -> None:
        """Send these first, however many they are."""
        with self._changed:
            self._waiting.extendleft(reversed(rows))
            self._taken += len(rows)
            self._changed.notify_all()

    def health(self) -> SinkHealth:
        """How it is doing."""
        with self._changed:
            return SinkHealth(
                connected=self._thread is not None and self._answered and not self._away,
                queued=self._pending,
                failed=self._failed,
                discarded=self._discarded,
                reconnects=self._reconnects,
            )

    @property
    def _pending(self) -> int:
        return len(self._waiting) + len(self._sent)

    @property
    def _holds_up_nobody(self) -> bool:
        return self._config.when_full == "drop_oldest" and self._away

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise RuntimeError("the sender of outputs has ended") from self._fault

    def _token(self) -> str:
        return read_secret(self._config.token_file) if self._config.token_file else ""

    def _put(self, line: bytes, *, at_any_rate: bool) -> bool:
        """Queue a row, perhaps in place of the oldest one that is not under way; False: no room, waited for in vain.

        ``at_any_rate``: past the bound, so that at a stop the queue may grow by one batch.
        """
        with self._changed:
            if self._is_full and self._config.when_full == "drop_oldest":
                self._raise_fault()
                if self._waiting:  # else all there is room for is under way
                    self._waiting.popleft()
                    self._discarded += 1
            elif self._is_full and not at_any_rate:
                self._raise_fault()
                self._changed.notify_all()
                if not self._changed.wait_for(lambda: not self._is_full, _WAIT_S):
                    return False
            self._waiting.append(line)
            self._taken += 1
            return True

    @property
    def _is_full(self) -> bool:
        return self._pending >= self._config.queue_rows

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
        most = min(_MOST_ROWS, max(1, self._config.queue_rows // 2))
        with self._changed:
            while not self._closing:
                left_s = self._next_s - self._clock()
                if self._waiting and (left_s <= 0 or len(self._waiting) >= min(_GATHER_ROWS, most)):
                    break
                self._changed.wait(left_s if self._waiting else None)
            if not self._waiting:
                return False
            size = 0
            while self._waiting and len(self._sent) < most and size < _MOST_BYTES:
                self._sent.append(self._waiting.popleft())
                size += len(self._sent[-1])
        return True

    def _deliver(self, poster: Poster) -> bool:
        """Send the rows under way until they are accepted or refused; False when closed meanwhile."""
        body, pause_s = b"".join(self._sent), self._first_pause_s
        while True:
            answer = self._post(poster, body)
            if answer is not None and not answer.passing:
                self._settle(answer, len(body))
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

    def _settle(self, answer: Answer, size: int) -> None:
        """The server has the rows, or never will."""
        with self._changed:
            if answer.accepted:
                self._confirmed_bytes += size
            else:
                self._failed += len(self._sent)
                if answer.status not in self._refusals:
                    self._refusals.add(answer.status)
                    log.error("%s: refused outputs with %s; said once", self._config.url, answer.said)
            self._sent.clear()
            self._changed.notify_all()

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
