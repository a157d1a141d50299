"""A daemon that kills itself at a named point, or lacks a part of its guarantee.

    python -m tests.kill.child [--point NAME --side before|after --nth K] [--without PART] [--tell FD] -- run CONFIG

``--tell``: a file descriptor to which ``r`` is written when recovery begins and ``l`` when the loop begins.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from typing import Any

from tests.kill.points import POINTS, SIDES, Point


def main() -> None:
    """Apply the options, then run ``stream-gru``."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill.child")
    parser.add_argument("--point", choices=sorted(POINTS))
    parser.add_argument("--side", choices=SIDES, default="before")
    parser.add_argument("--nth", type=int, default=1)
    parser.add_argument("--without", choices=sorted(ABLATIONS))
    parser.add_argument("--tell", type=int)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    if given.without:
        ABLATIONS[given.without]()
    if given.tell is not None:
        report_progress(given.tell)
    if given.point:
        arm(POINTS[given.point], given.side, given.nth)
    from stream_gru.cli.main import main as cli

    sys.argv = ["stream-gru", *given.command]
    cli()


def patch(function: str, change: Callable[[Any], Any]) -> None:
    """Replace the function ``module:name`` by ``change(function)``."""
    module, _, path = function.partition(":")
    owner: Any = importlib.import_module(module)
    *way, name = path.split(".")
    for step in way:
        owner = getattr(owner, step)
    setattr(owner, name, change(getattr(owner, name)))


def arm(point: Point, side: str, nth: int) -> None:
    """Kill the process at the ``nth`` call of a point."""
    calls = count(1)

    def change(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if point.chosen is not None and not point.chosen(*arguments):
                return function(*arguments, **options)
            last = next(calls) == nth
            if last and side == "before":
                _die()
            result = function(*arguments, **options)
            if last:
                _die()
            return result

        return call

    patch(point.function, change)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def report_progress(descriptor: int) -> None:
    """Write a letter when recovery and the loop start."""
    for function, letter in (
        ("runtime.checkpoint.checkpointer:Checkpointer.recover", b"r"),
        ("runtime.daemon:Daemon._loop", b"l"),
    ):

        def change(function: Callable[..., Any], letter: bytes = letter) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                os.write(descriptor, letter)
                return function(*arguments)

            return call

        patch(f"stream_gru.{function}", change)


def _acknowledge_on_arrival() -> None:
    """Acknowledge messages before they are stored, as paho does by default."""

    def change(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(source: Any, message: Any) -> None:
            function(source, message)
            source.connection.acknowledge(message)

        return call

    patch("stream_gru.connectors.sources.mqtt:MqttSource._on_message", change)
    patch("stream_gru.connectors.mqtt.ack_tracker:AckTracker.pending_acks", lambda _: lambda _ledger: [])


def _know_no_packets() -> None:
    """Forget, at the start, the packets that earlier processes have processed."""
    patch("stream_gru.connectors.sources.mqtt:MqttSource.resume", lambda _: lambda _source, _packets: None)


def _cut_nothing() -> None:
    """Append to a file without cutting it back."""
    patch("stream_gru.connectors.sinks.file:recover", lambda _: lambda path, _mark, _keep: _size(path))


def _size(path: Any) -> int:
    return int(path.stat().st_size) if path.exists() else 0


def _keep_every_batch() -> None:
    """Leak every processed batch."""
    kept: list[Any] = []

    def change(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(pipeline: Any, batch: Any) -> Any:
            result = function(pipeline, batch)
            kept.append((batch, result, bytearray(_LEAKED_BYTES * len(batch))))
            return result

        return call

    patch("stream_gru.pipeline.pipeline:Pipeline.process", change)


_LEAKED_BYTES = 256
ABLATIONS: dict[str, Callable[[], None]] = {
    "ack": _acknowledge_on_arrival,
    "packets": _know_no_packets,
    "truncate": _cut_nothing,
    "release": _keep_every_batch,
}


if __name__ == "__main__":
    main()
