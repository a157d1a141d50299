"""``stream-gru probe`` and ``record``: print or record the messages of the sources, beside a running daemon.

A broker sees another client id without a session, so the daemon loses no message.  A serial port has a single reader.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType

import click
import numpy as np
from msgspec import structs

from stream_gru.cli.group import FiniteRange
from stream_gru.cli.run import log_to_stderr
from stream_gru.connectors.mqtt.auth import new_client_id
from stream_gru.connectors.sources.message_log import MessageLogWriter
from stream_gru.core.errors import EndOfInput
from stream_gru.core.timestamps import format_iso
from stream_gru.core.types import RawMessage, SampleBatch
from stream_gru.runtime.resolved_config import ResolvedConfig, SourceSpec, resolve_file
from stream_gru.runtime.wiring import Input, Surroundings, build_input, build_shared

_SHOWN = 120


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--seconds",
    type=FiniteRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="S",
    help="Stop after S seconds.",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="Stop after N messages.")
@click.option("--source", "only", metavar="NAME", help="Read only this source.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per message.")
def probe(config: Path, seconds: float, count: int | None, only: str | None, as_json: bool) -> None:
    """Print the messages and samples of the sources of CONFIG.

    Connects and decodes, but predicts nothing.  The exit code is 1 when no sample arrives.
    """
    resolved = resolve_file(config)
    log_to_stderr("warning")
    reader = SourceReader(resolved, only, seconds)
    reader.stop_on_signals()
    messages = samples = 0
    for one, raw in reader.messages():
        ingest = one.ingests[one.name]
        for message in raw:
            batch = ingest.apply(ingest.decode([message])).batch
            messages, samples = messages + 1, samples + len(batch)
            for line in _lines(resolved, one.name, message, batch, as_json):
                click.echo(line)
            if count is not None and messages >= count:
                reader.stop()
                break
    click.echo(f"{messages:,} messages, {samples:,} samples", err=True)
    if not messages:
        logging.getLogger(__name__).error("no message arrived; check the address, and that the device sends")
    if not samples:
        raise SystemExit(1)


def _lines(
    config: ResolvedConfig, source: str, message: RawMessage, batch: SampleBatch, as_json: bool
) -> Iterator[str]:
    channels = [channel.name for channel in config.bundle.manifest.channels]
    rows = list(_rows(batch, channels))
    rejected = {reason.text: n for reason, n in batch.rejected_counts.items()}
    if as_json:
        yield json.dumps(
            {
                "source": source,
                "key": message.key,
                "arrival": format_iso(np.array([message.arrival_ns]))[0],
                "payload": message.payload[:_SHOWN].decode("utf-8", "backslashreplace"),
                "bytes": len(message.payload),
                "samples": rows,
                "rejected": rejected,
            }
        )
        return
    where = f"{source} {message.key}" + (f" {message.channel}" if message.channel else "")
    yield f"{where}: {_visible(message.payload)}"
    for row in rows:
        yield f"    {row['stream']} {row['time']} " + " ".join(
            f"{name}={_number(value)}"
            for name, value in row["values"].items()  # type: ignore[attr-defined]
        )
    for reason, n in rejected.items():
        yield f"    dropped: {n} {reason}"
    if not rows and not rejected:
        yield "    no sample yet: other channels are missing, or the message holds no record"


def _rows(batch: SampleBatch, channels: Sequence[str]) -> Iterator[dict[str, object]]:
    times = format_iso(batch.time_ns)
    for i in range(len(batch)):
        values = {
            name: float(value) if np.isfinite(value) else None
            for name, value in zip(channels, batch.values[i], strict=True)
        }
        yield {"stream": batch.stream_names[batch.stream_index[i]], "time": times[i], "values": values}


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value:.6g}"


def _visible(payload: bytes) -> str:
    """The beginning of a payload, with control characters escaped."""
    text = repr(payload[:_SHOWN])[2:-1]
    return text + (f"... ({len(payload):,} bytes)" if len(payload) > _SHOWN else "")


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
    return replace(spec, broker=structs.replace(spec.broker, client_id=new_client_id(), session_expiry_s=0))


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Write this file; compress it if its name ends in .gz.",
)
@click.option("--seconds", type=FiniteRange(min=0, min_open=True), metavar="S", help="Stop after S seconds.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="Stop after N messages.")
@click.option("--source", "only", metavar="NAME", help="Record only this source.")
def record(config: Path, out: Path, seconds: float | None, count: int | None, only: str | None) -> None:
    """Record the messages of the sources of CONFIG to a file.

    Each message is written unchanged, with its arrival time.  `stream-gru replay CONFIG FILE` reads the file instead of
    the sources and writes the same outputs as the daemon.
    """
    resolved = resolve_file(config)
    log_to_stderr(resolved.run.log_level)
    reader = SourceReader(resolved, only, seconds)
    reader.stop_on_signals()
    written = 0
    with MessageLogWriter(out) as writer:
        for _, raw in reader.messages():
            wanted = raw[: None if count is None else count - written]
            writer.write(wanted)
            writer.flush()
            written += len(wanted)
            if count is not None and written >= count:
                break
    click.echo(f"{written:,} messages recorded in {out}", err=True)
