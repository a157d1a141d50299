"""Read the sources of a configuration beside a running daemon, for `record` and `probe`.

A broker sees another client id without a session, so the daemon loses no message.  A serial port has a single reader.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import FrameType

import click
from msgspec import structs

from stream_gru.core.errors import EndOfInput
from stream_gru.core.types import RawMessage
from stream_gru.runtime.resolved_config import ResolvedConfig, SourceSpec
from stream_gru.runtime.wiring import Input, Surroundings, build_input, build_shared

_WAIT_S = 0.2
_MESSAGES = 1000


class SourceReader:
    """Reads the sources of ``config``, or the one named ``only``, for ``seconds``, or until `stop` if None.

    Raises click.UsageError for an unknown name.
    """

    def __init__(self, config: ResolvedConfig, only: str | None = None, seconds: float | None = None) -> None:
        self._wakeup, self._stopping = threading.Event(), False
        self._seconds = seconds
        specs = [_with_own_client_id(spec) for spec in config.sources if only in (None, spec.name)]
        if not specs:
            known = ", ".join(spec.name for spec in config.sources)
            raise click.UsageError(f"--source: expected one of {known}, got {only}")
        apart = replace(config, run=structs.replace(config.run, state_dir=""))
        shared = build_shared(config)
        surroundings = Surroundings(self._wakeup.set, threaded=True)
        self.inputs = [build_input(spec, apart, shared, surroundings) for spec in specs]

    def stop(self) -> None:
        """End `messages`; safe from a signal handler."""
        self._stopping = True
        self._wakeup.set()

    def stop_on_signals(self) -> None:
        """Have SIGINT and SIGTERM call `stop`."""

        def handle(_: int, __: FrameType | None) -> None:
            self.stop()

        signal.signal(signal.SIGINT, handle)
        signal.signal(signal.SIGTERM, handle)

    def messages(self, clock: Callable[[], float] = time.monotonic) -> Iterator[tuple[Input, Sequence[RawMessage]]]:
        """Yield messages with their input, until the time is over, `stop` is called or all inputs have ended.

        Raises SourceUnavailable or ConfigError if a source cannot be opened.
        """
        end = None if self._seconds is None else clock() + self._seconds
        with ExitStack() as closing:
            for one in self.inputs:
                one.source.open(None)
                closing.callback(one.source.close)
            active = list(self.inputs)
            while active and not self._stopping and (end is None or clock() < end):
                self._wakeup.clear()
                quiet = True
                for one in list(active):
                    try:
                        raw = one.source.poll(_MESSAGES, 0.0)
                    except EndOfInput:
                        active.remove(one)
                        continue
                    if raw:
                        quiet = False
                        yield one, raw
                        if raw[-1].position is not None:
                            one.source.commit(raw[-1].position)
                if quiet and active and not self._stopping:
                    self._wakeup.wait(_WAIT_S)


def _with_own_client_id(spec: SourceSpec) -> SourceSpec:
    """The source with another MQTT client id and no session."""
    if spec.broker is None:
        return spec
    name = f"stream-gru-reader-{os.uname().nodename}-{os.getpid()}"
    return replace(spec, broker=structs.replace(spec.broker, client_id=name, session_expiry_s=0))
