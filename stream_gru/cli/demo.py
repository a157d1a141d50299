"""``stream-gru demo``: run the shipped model on shipped recordings."""

from __future__ import annotations

import sys
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click
import numpy as np

from stream_gru import __version__
from stream_gru.cli.group import ENGINE, FiniteRange
from stream_gru.cli.run import run_daemon, stop_on_signals
from stream_gru.connectors.sources.files import ReplaySourceConfig
from stream_gru.core.commit_records import FlushResult, SinkCheckpoint
from stream_gru.core.errors import ConfigError
from stream_gru.core.prediction import Prediction, prediction_at
from stream_gru.core.types import PredictionBatch, SinkHealth
from stream_gru.model.bundle import load_bundle
from stream_gru.model.engines.registry import TimedEngine, load_engine
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.daemon import Daemon
from stream_gru.runtime.health import HealthReporter
from stream_gru.runtime.http.server import WebServer
from stream_gru.runtime.metrics import Metrics, build_registry
from stream_gru.runtime.resolved_config import resolve_bundle
from stream_gru.runtime.wiring import build_runtime

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

_SPEED = 400.0


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path), help="Use the bundle and recordings of this folder.  [default: shipped]"
)
@click.option("--fast", is_flag=True, help="Run as fast as possible, without the live view.")
@click.option(
    "--speed",
    type=FiniteRange(min=0, min_open=True),
    default=_SPEED,
    show_default=True,
    metavar="X",
    help="Replay X times as fast as recorded.",
)
@ENGINE
@click.option(
    "--metrics-listen",
    default="127.0.0.1:0",
    show_default=True,
    metavar="HOST:PORT",
    help="Serve metrics at this address; port 0 takes a free one.",
)
def demo(data: Path | None, fast: bool, speed: float, engine: str, metrics_listen: str) -> None:
    """Run the shipped pump model on held-out recordings.

    Shows values, forecasts, classes and resets, then the scores.  Needs no broker, no training and no hardware.
    """
    folder = data or shipped_samples()
    source = ReplaySourceConfig(files=[str(folder / "held_out" / "*")], speed=0.0 if fast else speed)
    config = resolve_bundle(load_bundle(folder / "pump.bundle"), source, engine=engine)
    metrics = Metrics(build_registry(), config.bundle.manifest, engine, __version__)
    metrics.add_source("replay")
    metrics.add_sink("view")
    loaded = TimedEngine(load_engine(engine, config.bundle), metrics.observe_inference)
    runtime = build_runtime(config, engine=loaded)
    live = sys.stderr.isatty() and not fast
    view = LiveView(runtime.pipeline) if live else PlainView(runtime.pipeline, every_s=0 if fast else 5.0)
    daemon = Daemon(replace(runtime, sinks={"view": view}), health=HealthReporter(metrics=metrics))
    stop_on_signals(daemon)
    server = WebServer(metrics_listen, metrics.registry, lambda: (True, "healthy"), lambda: (daemon.ready, "ready"))
    with ExitStack() as stack:
        server.open()
        stack.callback(server.close)
        view.metrics_address = f"{server.address}/metrics"
        click.echo(f"model {config.bundle.manifest.model_id}, bundle {folder / 'pump.bundle'}", err=True)
        click.echo(f"metrics at {view.metrics_address}", err=True)
        run_daemon(daemon, as_json=False)


def shipped_samples() -> Path:
    """The folder with the bundle and the held-out recording that are part of the package.  Raises ConfigError."""
    folder = Path(str(resources.files("stream_gru.examples"))) / "sample_data"
    if not (folder / "pump.bundle").is_dir():
        raise ConfigError(f"{folder}: expected the folder pump.bundle, found none; name another folder with --data")
    return folder


_BARS = "▁▂▃▄▅▆▇█"
_HISTORY = 16
_REFRESH_S = 0.1


class PlainView:
    """Prints one line per stream every ``every_s`` seconds, or nothing if 0; for outputs that are no terminal."""

    def __init__(self, pipeline: Pipeline, every_s: float, stream: TextIO | None = None) -> None:
        self._pipeline, self._every_s, self._out = pipeline, every_s, stream or sys.stderr
        self._due = time.monotonic()
        self.metrics_address = ""

    def open(self, checkpoint: SinkCheckpoint | None) -> None:
        """Nothing to open."""

    def ready(self) -> bool:
        """Always true: a terminal has no queue."""
        return True

    def write(self, batch: PredictionBatch) -> None:
        """Print the newest row of each stream if it is time."""
        if not self._every_s or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._every_s
        for row in _newest(batch):
            self._out.write(_line(prediction_at(batch, row)) + "\n")

    def flush(self) -> FlushResult:
        """Nothing to make durable."""
        return FlushResult()

    def committed(self) -> None:
        """Nothing waits for a commit."""

    def close(self) -> None:
        """Nothing to close."""

    def health(self) -> SinkHealth:
        """Always healthy."""
        return SinkHealth()


class LiveView:
    """A table with a row per stream and target, drawn with rich at most ten times per second."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._latest: dict[str, Prediction] = {}
        self._recent: dict[tuple[str, str], deque[float]] = {}
        self._resets: deque[str] = deque(maxlen=3)
        self._samples = 0
        self._begin = self._drawn = time.monotonic()
        self._live: Live | None = None
        self.metrics_address = ""

    def open(self, checkpoint: SinkCheckpoint | None) -> None:
        """Start to draw on the terminal."""
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=False)
        self._live.start()
        self._begin = time.monotonic()

    def ready(self) -> bool:
        """Always true: a terminal has no queue."""
        return True

    def write(self, batch: PredictionBatch) -> None:
        """Store the newest row of each stream, and draw if it is time."""
        self._samples += len(batch)
        self._note_resets(batch)
        for row in _newest(batch):
            prediction = prediction_at(batch, row)
            self._latest[prediction.stream] = prediction
            for target in self._pipeline.spec.targets:
                history = self._recent.setdefault((prediction.stream, target), deque(maxlen=_HISTORY))
                history.append(self._value(prediction.stream, target))
        now = time.monotonic()
        if self._live is not None and now - self._drawn >= _REFRESH_S:
            self._drawn = now
            self._live.update(self.draw(), refresh=True)

    def flush(self) -> FlushResult:
        """Nothing to make durable."""
        return FlushResult()

    def committed(self) -> None:
        """Nothing waits for a commit."""

    def close(self) -> None:
        """Draw the final table and release the terminal."""
        if self._live is not None:
            self._live.update(self.draw(), refresh=True)
            self._live.stop()
            self._live = None

    def health(self) -> SinkHealth:
        """Always healthy."""
        return SinkHealth()

    def _note_resets(self, batch: PredictionBatch) -> None:
        for row in np.flatnonzero(batch.reset):
            prediction = prediction_at(batch, int(row))
            self._resets.append(f"{prediction.time}  {prediction.stream}  {prediction.reset}")

    def _value(self, stream: str, target: str) -> float:
        names = [channel.name for channel in self._pipeline.manifest.channels]
        values = self._pipeline.table["applied_values"][self._pipeline.table.slot(stream)]
        return float(values[names.index(target)])

    def draw(self) -> RenderableType:
        """Return the current table."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        spec = self._pipeline.spec
        table = Table(title=f"model {spec.model_id}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        headings = [
            "stream",
            "time",
            "channel",
            "value",
            "recent",
            f"in {spec.horizon} steps",
            f"{spec.level:.0%} band",
        ]
        for heading in [*headings, "class", "status"]:
            numeric = heading == "value" or heading.startswith("in ")
            table.add_column(heading, justify="right" if numeric else "left", no_wrap=True)
        for stream, prediction in sorted(self._latest.items()):
            for number, target in enumerate(spec.targets or ("",)):
                table.add_row(*self._cells(stream, prediction, target, first=not number))
        rate = self._samples / max(1e-9, time.monotonic() - self._begin)
        footer = f" {self._samples:,} samples, {rate:,.0f}/s   metrics: {self.metrics_address}"
        resets = Text("\n".join(f" reset  {line}" for line in self._resets), style="dim")
        return Group(table, resets, Text(footer))

    def _cells(self, stream: str, prediction: Prediction, target: str, first: bool) -> list[str]:
        status = prediction.status if prediction.status == "ok" else f"[yellow]{prediction.status}[/yellow]"
        lead = [stream.replace("[", "\\["), prediction.time[11:19]] if first else ["", ""]
        tail = [f"[bold]{_class_text(prediction)}[/bold]", status] if first else ["", ""]
        if not prediction.forecast:
            return [*lead, "", "", "", "", "", *tail]
        band = "" if prediction.interval is None else "{:.4g} .. {:.4g}".format(*prediction.interval[target][-1])
        history = self._recent.get((stream, target), deque())
        value = f"{history[-1]:.4g}" if history else ""
        spark = f"[cyan]{sparkline(history)}[/cyan]"
        return [*lead, target, value, spark, f"{prediction.forecast[target][-1]:.4g}", band, *tail]


def sparkline(values: deque[float]) -> str:
    """Values as a line of bars, scaled from their minimum to their maximum."""
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    return "".join(_BARS[int((value - low) / span * (len(_BARS) - 1))] for value in finite)


def _newest(batch: PredictionBatch) -> list[int]:
    """The last row of each stream in the batch."""
    last = {int(stream): row for row, stream in enumerate(batch.stream_index.tolist())}
    return sorted(last.values())


def _class_text(prediction: Prediction) -> str:
    if not prediction.probabilities or prediction.label is None:
        return ""
    label = prediction.label if isinstance(prediction.label, str) else ", ".join(prediction.label)
    # Names are untrusted: do not interpret them as markup.
    label = label.replace("[", "\\[")
    return f"{label} {max(prediction.probabilities.values()):.0%}"


def _line(prediction: Prediction) -> str:
    parts = [prediction.stream, prediction.time]
    for target, values in (prediction.forecast or {}).items():
        parts.append(f"{target} -> {values[-1]:.4g}")
    return "  ".join([*parts, _class_text(prediction), prediction.status])
