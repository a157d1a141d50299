"""``stream-gru bench``: measure the speed of a bundle on this machine."""

from __future__ import annotations

import csv
import io
import json
import platform
import time
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from stream_gru.cli.group import ENGINE, FiniteRange
from stream_gru.config.run_schema import SourceInputConfig
from stream_gru.connectors.sinks.encoders import JsonEncoder
from stream_gru.connectors.sources.stdin import StdinSourceConfig
from stream_gru.core.protocols import Engine
from stream_gru.core.timestamps import format_iso
from stream_gru.core.types import F32, NS_PER_S, RawMessage
from stream_gru.model.bundle import Bundle, load_bundle
from stream_gru.model.engines.registry import load_engine
from stream_gru.model.explain import table
from stream_gru.runtime.resolved_config import resolve_bundle
from stream_gru.runtime.run_summary import resident_mib
from stream_gru.runtime.wiring import build_runtime

_START_NS = 1_772_323_200 * NS_PER_S


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@ENGINE
@click.option(
    "--seconds",
    type=FiniteRange(min=0.01, max=3600),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Measure each row for S seconds.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(bundle: Path, engine: str, seconds: float, as_json: bool) -> None:
    """Measure how fast BUNDLE runs on this machine.

    Measures the engine alone, and the whole pipeline from CSV bytes to JSON bytes.
    """
    model = load_bundle(bundle)
    loaded = load_engine(engine, model)
    rows = {**engine_rows(loaded, seconds), **pipeline_rows(model, loaded, seconds)}
    facts = {
        "model_id": model.manifest.model_id,
        "engine": loaded.name,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "memory_mib": round(resident_mib(), 1),
    }
    if as_json:
        click.echo(json.dumps({**facts, "microseconds_per_sample": rows}))
        return
    click.echo("  ".join(f"{name} {value}" for name, value in facts.items()))
    head = ["µs per sample", "median", "p99", "samples/s"]
    for line in table([head, *([name, *_cells(row)] for name, row in rows.items())]):
        click.echo(line)


def _cells(row: dict[str, float]) -> list[str]:
    return [f"{row['median']:.2f}", f"{row['p99']:.2f}", f"{1e6 / row['median']:,.0f}"]


def measure(call: Callable[[], Any], samples: int, seconds: float) -> dict[str, float]:
    """Repeat ``call`` for ``seconds``; return median and 99th percentile of the microseconds per sample."""
    for _ in range(3):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    median, p99 = np.percentile(times, (50, 99)) * 1e6 / samples
    return {"median": round(float(median), 3), "p99": round(float(p99), 3)}


def engine_rows(engine: Engine, seconds: float) -> dict[str, dict[str, float]]:
    """Measure the engine alone: one stream, many streams, one recording."""
    rng = np.random.default_rng(0)
    rows = {}
    for batch in (1, 32, 256, 1024):
        x = rng.normal(size=(batch, engine.input_size)).astype(np.float32)
        h = engine.initial_state(batch)
        rows[f"engine, step of {batch:,} streams"] = measure(_stepper(engine, x, h), batch, seconds)
    x = rng.normal(size=(4096, engine.input_size)).astype(np.float32)
    state = engine.initial_state(1)[0]
    rows["engine, scan of one stream"] = measure(lambda: engine.scan(x, state), len(x), seconds)
    return rows


def _stepper(engine: Engine, x: F32, h: F32) -> Callable[[], Any]:
    return lambda: engine.step(x, h)


def pipeline_rows(bundle: Bundle, engine: Engine, seconds: float) -> dict[str, dict[str, float]]:
    """Measure from CSV bytes to JSON bytes: one sample, a recording of one stream, and one of 1,000 streams."""
    return {
        "pipeline, one sample": measure(_processor(bundle, engine, 1, 1), 1, seconds),
        "pipeline, recording of one stream": measure(_processor(bundle, engine, 1, 2048), 2048, seconds),
        "pipeline, recording of 1,000 streams": measure(_processor(bundle, engine, 1000, 2000), 2000, seconds),
    }


def _processor(bundle: Bundle, engine: Engine, streams: int, rows: int) -> Callable[[], Any]:
    """A function that processes the next ``rows`` samples of ``streams`` streams per call."""
    manifest = bundle.manifest
    columns = {manifest.input.time, *(channel.column or channel.name for channel in manifest.channels)}
    stream_column = free_name("stream", columns)
    keys = SourceInputConfig(delimiter=",", time_unit="iso", stream=stream_column, label="", reset="", episode="")
    config = resolve_bundle(bundle, StdinSourceConfig(format="csv", input=keys))
    runtime, encoder = build_runtime(config, engine=engine), JsonEncoder()
    (ingest,) = runtime.inputs[0].ingests.values()
    header = header_of([manifest.input.time, stream_column, *config.sources[0].fields.columns])
    rng = np.random.default_rng(0)
    mean, scale = bundle.weights["scaling/mean"], bundle.weights["scaling/scale"]
    low = np.array([-np.inf if c.min is None else c.min for c in manifest.channels])
    high = np.array([np.inf if c.max is None else c.max for c in manifest.channels])
    values = np.clip(mean + 0.3 * scale * rng.normal(size=(rows, len(mean))), low, high)
    tails = [f",s{i % streams}," + ",".join(f"{v:.3f}" for v in row) + "\n" for i, row in enumerate(values)]
    steps = np.arange(rows) // streams
    period_ns = round(manifest.period_s * NS_PER_S)
    elapsed_steps = 0

    def call() -> bytes:
        nonlocal elapsed_steps
        times = format_iso(_START_NS + (elapsed_steps + steps) * period_ns)
        elapsed_steps += int(steps[-1]) + 1
        payload = "".join([a + b for a, b in zip(times, tails, strict=True)]).encode()
        batch = ingest.apply(ingest.decode([RawMessage(payload, "bench", header)])).batch
        return encoder.encode(runtime.pipeline.process(batch))

    return call


def free_name(wanted: str, taken: Container[str]) -> str:
    """Append ``_`` to ``wanted`` until the name is not in ``taken``."""
    while wanted in taken:
        wanted += "_"
    return wanted


def header_of(names: Sequence[str]) -> bytes:
    """The first line of a CSV file with these columns."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(names)
    return text.getvalue().encode()
