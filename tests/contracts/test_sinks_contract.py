"""Every sink, in every form, fulfils every clause of the Sink contract."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from stream_gru.connectors.sinks.encoders import ENCODERS
from stream_gru.connectors.sinks.file import file_sink
from stream_gru.connectors.sinks.influx import InfluxSink, InfluxSinkConfig
from stream_gru.connectors.sinks.stdout import StdoutSink
from stream_gru.connectors.sinks.throttle import Throttled
from stream_gru.core.commit_records import FlushResult, SinkCheckpoint
from stream_gru.core.errors import SinkUnavailable
from stream_gru.core.protocols import Sink
from stream_gru.core.types import PredictionBatch
from tests.support.batches import batch, part
from tests.support.influx_server import influx_server
from tests.support.pipelines import toy_pipeline
from tests.support.waiting import wait_for

OUTPUTS = toy_pipeline().process(batch(["p", "q"] * 10, [i // 2 for i in range(20)]))


@dataclass
class SinkCase:
    """A sink that is not open yet, its form, and a reader of its output."""

    sink: Sink
    form: str
    content: Callable[[], bytes]
    touched: Callable[[], bool]


SUFFIXES = {"line_protocol": "lp"}


@contextmanager
def file_sink_case(form: str, compressed: bool) -> Iterator[SinkCase]:
    """A file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"out.{SUFFIXES.get(form, form)}{'.gz' if compressed else ''}"
        read = (lambda: gzip.decompress(path.read_bytes())) if compressed else path.read_bytes
        yield SinkCase(file_sink(path, append=True), form, read, path.exists)


@contextmanager
def stdout_case(form: str) -> Iterator[SinkCase]:
    """A stream in place of standard output."""
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        sink = StdoutSink(ENCODERS[form](), file.file)
        yield SinkCase(sink, form, path.read_bytes, lambda: path.stat().st_size > 0)


@contextmanager
def throttled_case() -> Iterator[SinkCase]:
    """A file behind a throttle that passes every output of this test: one per nanosecond."""
    with file_sink_case("jsonl", False) as case:
        case.sink = Throttled(case.sink, "interval", 1e-9)
        yield case


@contextmanager
def influx_case() -> Iterator[SinkCase]:
    """A server on this machine."""
    with influx_server(204) as server:
        sink = InfluxSink(InfluxSinkConfig(url=server.url, when_full="block"))
        yield SinkCase(sink, "line_protocol", lambda: server.rows, lambda: bool(server.asked))
        sink.close()


SINKS: dict[str, Callable[[], AbstractContextManager[SinkCase]]] = {
    **{f"file_{form}": partial(file_sink_case, form, False) for form in ENCODERS},
    **{f"file_{form}_gz": partial(file_sink_case, form, True) for form in ENCODERS},
    **{f"stdout_{form}": partial(stdout_case, form) for form in ENCODERS},
    "throttled": throttled_case,
    "influx": influx_case,
}


def commit_case(sink: Sink) -> FlushResult:
    """A commit whose store keeps nothing."""
    written = sink.flush()
    sink.committed()
    return written


def expected(form: str, *batches: PredictionBatch) -> bytes:
    """Header and rows."""
    encoder = ENCODERS[form]()
    return encoder.header(OUTPUTS.spec) + b"".join(encoder.encode(outs) for outs in batches)


def check_is_a_sink(case: SinkCase) -> None:
    """It has the methods."""
    assert isinstance(case.sink, Sink)


def check_constructor_touches_nothing(case: SinkCase) -> None:
    """Before open nothing is created or written."""
    assert not case.touched()


def check_rows_in_order(case: SinkCase) -> None:
    """Written rows are there, in order, after one header."""
    case.sink.open(None)
    case.sink.write(OUTPUTS)
    case.sink.write(OUTPUTS)
    commit_case(case.sink)
    case.sink.close()
    assert case.content() == expected(case.form, OUTPUTS, OUTPUTS)


def check_batches_do_not_matter(case: SinkCase) -> None:
    """Row by row gives the same bytes as all at once; commits between do not change the text."""
    case.sink.open(None)
    for row in range(len(OUTPUTS)):
        case.sink.write(part(OUTPUTS, slice(row, row + 1)))
        if row % 7 == 0:
            commit_case(case.sink)
    commit_case(case.sink)
    case.sink.close()
    assert case.content() == expected(case.form, OUTPUTS)


def check_empty_batches_write_no_row(case: SinkCase) -> None:
    """A batch without rows writes nothing."""
    case.sink.open(None)
    case.sink.write(part(OUTPUTS, slice(0, 0)))
    case.sink.write(OUTPUTS)
    commit_case(case.sink)
    case.sink.close()
    assert case.content() == expected(case.form, OUTPUTS)


def check_each_flush_tells_what_is_new(case: SinkCase) -> None:
    """A longer file, or outputs for the store to keep; without new rows the same checkpoint, and no output twice."""
    case.sink.open(SinkCheckpoint())
    first = commit_case(case.sink)
    for _ in range(3):
        case.sink.write(OUTPUTS)
        second, again = commit_case(case.sink), commit_case(case.sink)
        assert (second.file_offset is None) == (first.file_offset is None)
        if first.file_offset is not None and second.file_offset is not None:
            assert second.file_offset.offset > first.file_offset.offset
        assert len(second.unacked) == (len(OUTPUTS) if isinstance(case.sink, InfluxSink) else 0)
        assert (again.file_offset, list(again.unacked)) == (second.file_offset, [])
        first = second
    case.sink.close()


def check_an_empty_store_is_as_good_as_none(case: SinkCase) -> None:
    """At the first start there is no stored state."""
    case.sink.open(SinkCheckpoint())
    commit_case(case.sink)
    case.sink.write(OUTPUTS)
    commit_case(case.sink)
    case.sink.close()
    assert case.content() == expected(case.form, OUTPUTS)


def check_ready_for_the_first_rows(case: SinkCase) -> None:
    """An open empty sink has space, and has it again when everything is sent."""
    case.sink.open(None)
    assert case.sink.ready()
    case.sink.write(OUTPUTS)
    commit_case(case.sink)
    wait_for(lambda: not case.sink.health().queued)
    assert case.sink.ready()
    case.sink.close()


def check_a_closed_sink_has_nothing_to_say(case: SinkCase) -> None:
    """A commit after the end raises nothing: it may return acknowledgements for the store, but no rows."""
    case.sink.open(None)
    case.sink.write(OUTPUTS)
    commit_case(case.sink)
    case.sink.close()
    last = commit_case(case.sink)
    assert (last.file_offset, list(last.unacked)) == (None, [])
    assert case.content() == expected(case.form, OUTPUTS)


def check_sink_closes_twice(case: SinkCase) -> None:
    """Closing twice, or without opening, raises nothing."""
    case.sink.close()
    case.sink.open(None)
    case.sink.close()
    case.sink.close()


def check_write_unopened_file(case: SinkCase) -> None:
    """Writing to a sink that is not open is SinkUnavailable (a given stream is open)."""
    if isinstance(case.sink, StdoutSink):
        return
    with pytest.raises(SinkUnavailable, match="not open"):
        case.sink.write(OUTPUTS)


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", sorted(SINKS))
def test_sink_contract(name: str, check: Callable[[SinkCase], None]) -> None:
    """Every sink fulfils every clause."""
    with SINKS[name]() as case:
        check(case)
