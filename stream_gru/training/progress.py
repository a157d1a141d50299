"""How training tells what it is doing: a bar on a terminal, a line a round elsewhere, or nothing."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Row = Mapping[str, float]
"""One round: ``epoch`` (passes so far), ``loss``, ``val_loss``, ``seconds`` and what the heads add.

Where rounds are not passes also ``updates`` (in all).
"""

Unit = Literal["epoch", "update"]
"""What a training's length is counted in."""

_KEYS = {"epoch": "epoch", "update": "updates"}
_SEEN_S = 0.05


class Reporter(Protocol):
    """Told by training, in this order: `on_start`, then per round `on_batch`... and `on_round`, then `close`."""

    def on_start(self, total: int, unit: Unit) -> None:
        """Training begins; at most ``total`` epochs or updates."""

    def on_batch(self, done: int, total: int, loss: float) -> None:
        """``done`` of at most ``total`` batches of this round are finished, the last one with this loss."""

    def on_round(self, row: Row) -> None:
        """A round is finished: training looked at the validation part."""

    def close(self) -> None:
        """Training has ended, for whatever reason."""


class SilentReporter:
    """Says nothing."""

    def on_start(self, total: int, unit: Unit) -> None:
        """Nothing."""

    def on_batch(self, done: int, total: int, loss: float) -> None:
        """Nothing."""

    def on_round(self, row: Row) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class PlainReporter(SilentReporter):
    """One line a round, for logs."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """``stream``: standard error when None."""
        self.stream = stream or sys.stderr
        self.total = 0
        self.unit: Unit = "epoch"

    def on_start(self, total: int, unit: Unit) -> None:
        """Remember how long training may take."""
        self.total, self.unit = total, unit

    def on_round(self, row: Row) -> None:
        """Write the line."""
        self.stream.write(f"{describe(row, self.total, self.unit)}\n")
        self.stream.flush()


class RichReporter(SilentReporter):
    """A bar for the round and one for the whole, and a line for each finished round; on standard error."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is drawn before `on_start`; ``clock`` in seconds."""
        self.total = 0
        self.unit: Unit = "epoch"
        self.clock = clock
        self.drawn_at = -math.inf
        self.progress: Progress | None = None
        self.whole: TaskID | None = None
        self.round: TaskID | None = None

    def on_start(self, total: int, unit: Unit) -> None:
        """Draw the bars."""
        from rich.console import Console
        from rich.progress import Progress

        self.total, self.unit = total, unit
        self.progress = Progress(console=Console(stderr=True), transient=True)
        self.whole = self.progress.add_task(f"{unit}s", total=total)
        self.round = self.progress.add_task("batches", total=None)
        self.progress.start()

    def on_batch(self, done: int, total: int, loss: float) -> None:
        """Move the round's bar, no oftener than can be seen."""
        now = self.clock()
        if self.progress is not None and self.round is not None and now - self.drawn_at >= _SEEN_S:
            self.drawn_at = now
            self.progress.update(self.round, completed=done, total=total, description=f"loss {loss:.4g}")

    def on_round(self, row: Row) -> None:
        """Write the round's line above the bars and move the bar of the whole."""
        if self.progress is not None and self.whole is not None:
            self.progress.console.print(describe(row, self.total, self.unit), highlight=False)
            self.progress.update(self.whole, completed=row[_KEYS[self.unit]])

    def close(self) -> None:
        """Take the bars away."""
        if self.progress is not None:
            self.progress.stop()


def describe(row: Row, total: int, unit: Unit) -> str:
    """A round in one line, e.g. ``epoch 3/20  loss 0.1234  val_loss 0.1312  2.1 s``."""
    key = _KEYS[unit]
    figures = [f"{name} {value:.4g}" for name, value in row.items() if name not in ("epoch", "updates", "seconds")]
    counts = [f"{name} {_short(row[name])}" for name in ("epoch", "updates") if name in row and name != key]
    return "  ".join([f"{unit} {_short(row[key])}/{total}", *counts, *figures, f"{row['seconds']:.1f} s"])


def named_round(row: Row) -> str:
    """A round in words, e.g. ``epoch 3`` or ``update 1200 (epoch 1.35)``."""
    epoch = f"epoch {_short(row['epoch'])}"
    return f"update {_short(row['updates'])} ({epoch})" if "updates" in row else epoch


def _short(count: float) -> str:
    """A count with at most two decimals and none that say nothing."""
    return f"{count:.2f}".rstrip("0").rstrip(".")


def default_reporter(silent: bool = False) -> Reporter:
    """Bars on a terminal, plain lines otherwise, nothing when ``silent``."""
    if silent:
        return SilentReporter()
    return RichReporter() if sys.stderr.isatty() else PlainReporter()
