"""Listening to the sources of a configuration beside a daemon that runs: what `record` and `probe` have in common.

A broker sees a client of its own that leaves nothing behind, so that no message of the daemon's is taken away.  A
serial port has one listener only.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import FrameType

import click
from msgspec.structs import replace

from stream_gru.connectors.sources.registry import build_source
from stream_gru.core.errors import EndOfInput
from stream_gru.core.protocols import Source
from stream_gru.core.types import RawMessage
from stream_gru.runtime.resolved_config import ResolvedConfig, SourceSpec

_WAIT_S = 0.2
_MESSAGES = 1000


class Listener:
    """All sources of a plan.  ``only``: the name of one of them; ``seconds``: for how long, None until `stop`.

    Raises click.UsageError when there is no source of that name.
    """

    def __init__(self, plan: ResolvedConfig, only: str | None = None, seconds: float | None = None) -> None:
        self._bell, self._stopping = threading.Event(), False
        self._seconds = seconds
        planned = [one for one in plan.sources if only in (None, one.name)]
        if not planned:
            known = ", ".join(one.name for one in plan.sources)
            raise click.UsageError(f"--source: expected one of {known}, got {only}")
        self.sources = [(one, self._build(plan, one)) for one in planned]

    def stop(self) -> None:
        """End the listening; safe from a signal handler."""
        self._stopping = True
        self._bell.set()

    def stop_on_signals(self) -> None:
        """Ctrl-C and SIGTERM end it."""

        def handle(_: int, __: FrameType | None) -> None:
            self.stop()

        signal.signal(signal.SIGINT, handle)
        signal.signal(signal.SIGTERM, handle)

    def messages(
        self, clock: Callable[[], float] = time.monotonic
    ) -> Iterator[tuple[SourceSpec, Sequence[RawMessage]]]:
        """Yield what arrives, source by source, until time is up, somebody says stop or all inputs have ended.

        Raises SourceUnavailable and ConfigError where a source cannot be opened at all.
        """
        end = None if self._seconds is None else clock() + self._seconds
        with ExitStack() as closing:
            for _, source in self.sources:
                source.open(None)
                closing.callback(source.close)
            live = list(self.sources)
            while live and not self._stopping and (end is None or clock() < end):
                self._bell.clear()
                quiet = True
                for planned, source in list(live):
                    try:
                        raw = source.poll(_MESSAGES, 0.0)
                    except EndOfInput:
                        live.remove((planned, source))
                        continue
                    if raw:
                        quiet = False
                        yield planned, raw
                        if raw[-1].position is not None:
                            source.commit(raw[-1].position)
                if quiet and live and not self._stopping:
                    self._bell.wait(_WAIT_S)

    def _build(self, plan: ResolvedConfig, planned: SourceSpec) -> Source:
        broker = planned.broker
        if broker is not None:
            name = f"stream-gru-listener-{os.uname().nodename}-{os.getpid()}"
            broker = replace(broker, client_id=name, session_expiry_s=0)
        return build_source(
            planned.config,
            planned.name,
            planned.format,
            broker=broker,
            batch_rows=plan.run.batch_rows,
            alone=False,
            bell=self._bell.set,
        )
