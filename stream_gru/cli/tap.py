"""``stream-gru tap``: show the outputs of a running daemon."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self

import click
import msgspec
from msgspec import Meta, Struct, field

from stream_gru.cli.control import Remote, chosen_remote
from stream_gru.cli.demo import sparkline
from stream_gru.cli.group import FiniteRange

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("--url", help="Read from this address (http://HOST:PORT) instead of CONFIG.")
@click.option("--stream", metavar="NAME", help="Show only this stream.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Stop after N outputs.")
@click.option(
    "--wait",
    type=FiniteRange(min=0),
    default=10.0,
    show_default=True,
    metavar="S",
    help="Wait S seconds for the daemon.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines, also on a terminal.")
def tap(
    config: Path | None, url: str | None, stream: str | None, count: int | None, wait: float, as_json: bool
) -> None:
    """Show the outputs of the running daemon live.

    On a terminal they are a table, elsewhere JSON lines.  Ctrl-C ends the command with exit code 0; the end of the
    daemon ends it with exit code 1.
    """
    remote = chosen_remote(config, url)
    remote.wait_until_listening(wait)
    with closing(_first(remote.events(stream), count)) as events:
        try:
            if as_json or not sys.stdout.isatty():
                _print(events)
            else:
                _draw(events, remote)
        except KeyboardInterrupt:
            return


def _first(events: Iterator[tuple[str, str]], count: int | None) -> Generator[tuple[str, str]]:
    """The events up to output number ``count``."""
    outputs = 0
    for event, data in events:
        yield event, data
        outputs += not event
        if outputs == count:
            return


def _print(events: Iterator[tuple[str, str]]) -> None:
    for event, data in events:
        if not event:
            click.echo(data)
        elif event == "dropped":
            click.echo(
                f"stream-gru: outputs were dropped, since they arrive faster than they are read: {data}", err=True
            )


def _draw(events: Iterator[tuple[str, str]], remote: Remote) -> None:
    from stream_gru.cli.tap import TapView

    with TapView(str(remote)) as view:
        for event, data in events:
            view.on_event(event, data)


_HISTORY = 16
_REFRESH_HZ = 10
_MAX_STREAMS = 1000
# Lines of title, headings and footer.
_FRAME_LINES = 6
_HEADINGS = ("stream", "time", "channel", "next", "recent", "furthest", "band", "class", "status")


_Number = float | None
_Pair = tuple[_Number, _Number]


class Output(Struct, frozen=True):
    """The fields of an output row that the table shows, see `stream_gru.core.prediction.Prediction.as_dict`."""

    stream: str
    time: str
    status: str
    forecast: dict[str, Annotated[list[_Number], Meta(min_length=1)]] = {}
    interval: dict[str, Annotated[list[_Pair], Meta(min_length=1)]] = {}
    label: str | list[str] | None = field(name="class", default=None)
    probabilities: dict[str, _Number] = {}


class Dropped(Struct, frozen=True):
    """The number of rows that the daemon dropped for this client."""

    rows: int


class TapView:
    """A table with a row per stream and target, drawn ten times per second by a thread of rich.

    Text from the daemon is neither read as markup nor sent to the terminal as control characters.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._title = title
        self._console = console or Console()
        self._lock = threading.Lock()
        self._latest: dict[str, Output] = {}
        self._recent: dict[tuple[str, str], deque[float]] = {}
        self._shown = self._dropped = 0
        self._begin = time.monotonic()
        self._live = Live(console=self._console, get_renderable=self.draw, refresh_per_second=_REFRESH_HZ)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def on_event(self, event: str, data: str) -> None:
        """Store an event of the daemon for the next drawing; malformed events are ignored."""
        try:
            with self._lock:
                if event == "dropped":
                    self._dropped += msgspec.json.decode(data, type=Dropped).rows
                elif not event:
                    self._store(msgspec.json.decode(data, type=Output))
        except msgspec.MsgspecError:
            return

    def _store(self, row: Output) -> None:
        self._shown += 1
        if row.stream not in self._latest and len(self._latest) >= _MAX_STREAMS:
            return
        self._latest[row.stream] = row
        for target, values in row.forecast.items():
            history = self._recent.setdefault((row.stream, target), deque(maxlen=_HISTORY))
            history.append(math.nan if values[0] is None else values[0])

    def draw(self) -> RenderableType:
        """Return the current table, cut to the height of the terminal."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title=f"outputs of {self._title}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in _HEADINGS:
            numeric = heading in ("next", "furthest")
            table.add_column(heading, justify="right" if numeric else "left", no_wrap=True)
        with self._lock:
            rows = [cells for stream in sorted(self._latest) for cells in self._cells(stream)]
            for cells in rows[: max(1, self._console.height - _FRAME_LINES)]:
                table.add_row(*(Text(_printable(cell)) for cell in cells))
            rate = self._shown / max(1e-9, time.monotonic() - self._begin)
            footer = f" {len(self._latest)} streams, {self._shown:,} outputs, {rate:,.0f}/s"
            footer += f", {self._dropped:,} dropped" if self._dropped else ""
        return Group(table, Text(footer + "   Ctrl-C ends"))

    def _cells(self, stream: str) -> Iterator[list[str]]:
        row = self._latest[stream]
        lead, tail = [stream, row.time[11:19]], [_class_text(row), row.status]
        if not row.forecast:
            yield [*lead, "", "", "", "", "", *tail]
        for number, (target, values) in enumerate(row.forecast.items()):
            low, high = row.interval[target][-1] if target in row.interval else (None, None)
            band = "" if low is None or high is None else f"{_number(low)} .. {_number(high)}"
            spark = sparkline(self._recent[stream, target])
            cells = [target, _number(values[0]), spark, _number(values[-1]), band]
            yield [*(lead if not number else ["", ""]), *cells, *(tail if not number else ["", ""])]


def _number(value: _Number) -> str:
    return "" if value is None else f"{value:.4g}"


def _class_text(row: Output) -> str:
    if row.label is None:
        return ""
    name = row.label if isinstance(row.label, str) else ", ".join(row.label)
    known = [value for value in row.probabilities.values() if value is not None]
    return f"{name} {max(known):.0%}" if known else name


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "·" for letter in text)
