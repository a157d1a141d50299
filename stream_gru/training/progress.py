"""How training tells what it is doing: a bar on a terminal, a line an epoch elsewhere, or nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Row = Mapping[str, float]
"""One epoch: ``epoch`` (from 1), ``loss``, ``val_loss``, ``seconds`` and what the heads add."""


class Reporter(Protocol):
    """Told by training, in this order: `on_start`, then per epoch `on_batch`... and `on_epoch`, then `close`."""

    def on_start(self, total: int) -> None:
        """Training begins; at most ``total`` epochs."""

    def on_batch(self, done: int, total: int, loss: float) -> None:
        """``done`` of ``total`` batches of this epoch are finished, the last one with this loss."""

    def on_epoch(self, row: Row) -> None:
        """An epoch is finished."""

    def close(self) -> None:
        """Training has ended, for whatever reason."""


class SilentReporter:
    """Says nothing."""

    def on_start(self, total: int) -> None:
        """Nothing."""

    def on_batch(self, done: int, total: int, loss: float) -> None:
        """Nothing."""

    def on_epoch(self, row: Row) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class PlainReporter(SilentReporter):
    """One line an epoch, for logs."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """``stream``: standard error when None."""
        self.stream = stream or sys.stderr
        self.total = 0

    def on_start(self, total: int) -> None:
        """Remember how many epochs there may be."""
        self.total = total

    def on_epoch(self, row: Row) -> None:
        """Write the line."""
        self.stream.write(f"epoch {row['epoch']:.0f}/{self.total}  {describe(row)}\n")
        self.stream.flush()


class RichReporter(SilentReporter):
    """A bar for the epoch and one for the whole, and a line for each finished epoch; on standard error."""

    def __init__(self) -> None:
        """Nothing is drawn before `on_start`."""
        self.total = 0
        self.progress: Progress | None = None
        self.whole: TaskID | None = None
        self.epoch: TaskID | None = None

    def on_start(self, total: int) -> None:
        """Draw the bars."""
        from rich.console import Console
        from rich.progress import Progress

        self.total = total
        self.progress = Progress(console=Console(stderr=True), transient=True)
        self.whole = self.progress.add_task("epochs", total=total)
        self.epoch = self.progress.add_task("batches", total=None)
        self.progress.start()

    def on_batch(self, done: int, total: int, loss: float) -> None:
        """Move the epoch's bar."""
        if self.progress is not None and self.epoch is not None:
            self.progress.update(self.epoch, completed=done, total=total, description=f"loss {loss:.4g}")

    def on_epoch(self, row: Row) -> None:
        """Write the epoch's line above the bars and move the bar of the whole."""
        if self.progress is not None and self.whole is not None:
            self.progress.console.print(f"epoch {row['epoch']:.0f}/{self.total}  {describe(row)}", highlight=False)
            self.progress.update(self.whole, completed=row["epoch"])

    def close(self) -> None:
        """Take the bars away."""
        if self.progress is not None:
            self.progress.stop()


def describe(row: Row) -> str:
    """The figures of an epoch in one line, e.g. ``loss 0.1234  val_loss 0.1312  2.1 s``."""
    figures = [f"{name} {value:.4g}" for name, value in row.items() if name not in ("epoch", "seconds")]
    return "  ".join([*figures, f"{row['seconds']:.1f} s"])


def default_reporter(silent: bool = False) -> Reporter:
    """Bars on a terminal, plain lines otherwise, nothing when ``silent``."""
    if silent:
        return SilentReporter()
    return RichReporter() if sys.stderr.isatty() else PlainReporter()
