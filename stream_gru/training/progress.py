"""Progress of a training: bars on a terminal, one line per validation elsewhere, and TensorBoard logs."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Row = Mapping[str, float]
"""One validation: ``epoch`` (epochs so far), ``loss``, ``val_loss``, ``seconds`` and the losses of the heads.

Where an interval is not an epoch also ``updates`` (in all).
"""

Unit = Literal["epoch", "update"]
"""The unit of the length of a training."""

_KEYS = {"epoch": "epoch", "update": "updates"}
_REDRAW_S = 0.05


class Reporter(Protocol):
    """Called by training, in this order: `on_start`, then per interval `on_batch`... and `on_validation`, `close`."""

    def on_start(self, total: int, unit: Unit) -> None:
        """Training begins; at most ``total`` epochs or updates."""

    def on_batch(self, done: int, total: int, loss: float) -> None:
        """``done`` of at most ``total`` batches of this interval are finished, the last one with this loss."""

    def on_validation(self, row: Row) -> None:
        """An interval is finished and validated."""

    def close(self) -> None:
        """Training has ended, for whatever reason."""


class SilentReporter:
    """Reports nothing."""

    def on_start(self, total: int, unit: Unit) -> None:
        """Do nothing."""

    def on_batch(self, done: int, total: int, loss: float) -> None:
        """Do nothing."""

    def on_validation(self, row: Row) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class PlainReporter(SilentReporter):
    """One line per validation, for logs."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """``stream``: standard error when None."""
        self.stream = stream or sys.stderr
        self.total = 0
        self.unit: Unit = "epoch"

    def on_start(self, total: int, unit: Unit) -> None:
        """Store the length of the training."""
        self.total, self.unit = total, unit

    def on_validation(self, row: Row) -> None:
        """Write the line."""
        self.stream.write(f"{progress_line(row, self.total, self.unit)}\n")
        self.stream.flush()


class RichReporter(SilentReporter):
    """Bars for the interval and for the whole training, and one line per validation; on standard error."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is drawn before `on_start`; ``clock`` in seconds."""
        self.total = 0
        self.unit: Unit = "epoch"
        self.clock = clock
        self.drawn_at = -math.inf
        self.progress: Progress | None = None
        self.training: TaskID | None = None
        self.interval: TaskID | None = None

    def on_start(self, total: int, unit: Unit) -> None:
        """Draw the bars."""
        from rich.console import Console
        from rich.progress import Progress

        self.total, self.unit = total, unit
        self.progress = Progress(console=Console(stderr=True), transient=True)
        self.training = self.progress.add_task(f"{unit}s", total=total)
        self.interval = self.progress.add_task("batches", total=None)
        self.progress.start()

    def on_batch(self, done: int, total: int, loss: float) -> None:
        """Move the interval's bar, at most every `_REDRAW_S` seconds."""
        now = self.clock()
        if self.progress is not None and self.interval is not None and now - self.drawn_at >= _REDRAW_S:
            self.drawn_at = now
            self.progress.update(self.interval, completed=done, total=total, description=f"loss {loss:.4g}")

    def on_validation(self, row: Row) -> None:
        """Write the line above the bars and move the bar of the whole training."""
        if self.progress is not None and self.training is not None:
            self.progress.console.print(progress_line(row, self.total, self.unit), highlight=False)
            self.progress.update(self.training, completed=row[_KEYS[self.unit]])

    def close(self) -> None:
        """Remove the bars."""
        if self.progress is not None:
            self.progress.stop()


class TensorBoardLog:
    """TensorBoard scalars of a training, in one event file; without a ``folder`` nothing is written."""

    def __init__(self, folder: str) -> None:
        """The file is created with the first row."""
        self._folder = folder
        self._writer: Any = None

    def write(self, row: Row) -> None:
        """Append one validation; `tf.summary.scalar` would need the tensorboard package to write it."""
        if not self._folder:
            return
        import tensorflow as tf

        if self._writer is None:
            self._writer = tf.summary.create_file_writer(self._folder)
        metadata = tf.compat.v1.SummaryMetadata(data_class=1)
        metadata.plugin_data.plugin_name = "scalars"
        with self._writer.as_default(step=int(row.get("updates", row["epoch"]))):
            for name, value in row.items():
                if name not in ("epoch", "updates"):
                    tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


def progress_line(row: Row, total: int, unit: Unit) -> str:
    """One validation in one line, e.g. ``epoch 3/20  loss 0.1234  val_loss 0.1312  2.1 s``."""
    key = _KEYS[unit]
    figures = [f"{name} {value:.4g}" for name, value in row.items() if name not in ("epoch", "updates", "seconds")]
    counts = [f"{name} {_short(row[name])}" for name in ("epoch", "updates") if name in row and name != key]
    return "  ".join([f"{unit} {_short(row[key])}/{total}", *counts, *figures, f"{row['seconds']:.1f} s"])


def interval_name(row: Row) -> str:
    """The interval of a row, e.g. ``epoch 3`` or ``update 1200 (epoch 1.35)``."""
    epoch = f"epoch {_short(row['epoch'])}"
    return f"update {_short(row['updates'])} ({epoch})" if "updates" in row else epoch


def _short(count: float) -> str:
    """A count with at most two decimals, without trailing zeros."""
    return f"{count:.2f}".rstrip("0").rstrip(".")


def default_reporter() -> Reporter:
    """Bars on a terminal, plain lines otherwise."""
    return RichReporter() if sys.stderr.isatty() else PlainReporter()
