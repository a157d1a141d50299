from __future__ import annotations

import csv
import gzip
import json
import math
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.config.connector import SinkContext
from stream_gru.connectors.registry import build_sink
from stream_gru.connectors.sinks.encoders import CsvEncoder, JsonEncoder, LineEncoder, encode_once
from stream_gru.connectors.sinks.file import FileSink, FileSinkConfig, file_sink
from stream_gru.connectors.sinks.stdout import StdoutSink, StdoutSinkConfig
from stream_gru.core.commit_records import FileOffset, FlushResult
from stream_gru.core.errors import ConfigError, SinkUnavailable
from stream_gru.core.prediction import prediction_at
from stream_gru.core.types import PredictionBatch
from tests.support.batches import batch, part, prediction_batches
from tests.support.pipelines import toy_pipeline


def ramp_outputs(rows: int = 5) -> PredictionBatch:
    """The predictions of the toy model for a ramp."""
    return toy_pipeline().process(batch(["p"] * rows, list(range(rows))))


def as_float32(value: object) -> object:
    """JSON has the shortest text that identifies a float32; as float32 it is the same number."""
    if isinstance(value, dict):
        return {key: item if key == "level" else as_float32(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_float32(item) for item in value]
    return float(np.float32(value)) if isinstance(value, float) else value


@given(prediction_batches())
def test_a_json_row_is_the_record_of_its_prediction(outs: PredictionBatch) -> None:
    """Each line parses and equals `prediction_at(...).as_dict()`, with the device counter after the time."""
    lines = JsonEncoder().encode(outs).splitlines()
    assert len(lines) == len(outs)
    for row, line in enumerate(lines):
        expected = prediction_at(outs, row).as_dict()
        if outs.device_seq is not None:
            expected["seq"] = None if outs.device_seq[row] < 0 else int(outs.device_seq[row])
        assert as_float32(json.loads(line)) == as_float32(expected)


@given(prediction_batches(), st.integers(0, 12), st.sampled_from([JsonEncoder, CsvEncoder, LineEncoder]))
def test_the_bytes_of_a_row_do_not_depend_on_its_batch(
    outs: PredictionBatch, cut: int, encoder: type[JsonEncoder] | type[CsvEncoder] | type[LineEncoder]
) -> None:
    """A batch cut in two, or into single rows, gives the same bytes."""
    whole = encoder().encode(outs)
    assert encoder().encode(part(outs, slice(0, cut))) + encoder().encode(part(outs, slice(cut, None))) == whole
    assert b"".join(encoder().encode(part(outs, slice(i, i + 1))) for i in range(len(outs))) == whole


@given(prediction_batches())
def test_a_csv_row_has_the_fields_of_the_header(outs: PredictionBatch) -> None:
    """Header and rows have equally many fields, for any heads; numbers are those of the prediction."""
    text = (CsvEncoder().header(outs.spec, outs.alarm is not None) + CsvEncoder().encode(outs)).decode()
    names, *rows = csv.reader(text.splitlines(keepends=True))
    assert len(rows) == len(outs)
    for index, row in enumerate(rows):
        cells = dict(zip(names, row, strict=True))
        prediction = prediction_at(outs, index)
        assert (cells["stream"], cells["time"], cells["reset"]) == (
            prediction.stream,
            prediction.time,
            prediction.reset or "",
        )
        assert ("alarm" in cells) == (prediction.alarm is not None)
        assert cells.get("alarm", "") == ("" if prediction.alarm is None else str(prediction.alarm).lower())
        for target, numbers in (prediction.forecast or {}).items():
            for h, number in enumerate(numbers):
                cell = cells[f"{target}+{h + 1}"]
                assert float(np.float32(cell)) == number if math.isfinite(number) else cell == ""


@pytest.mark.parametrize("name", ["out", "out.txt", "out.gz", "out.parquet", "csv"])
def test_a_file_of_an_unknown_form_is_refused(name: str) -> None:
    """The file name must give the form; the error lists the suffixes."""
    if name == "csv":
        assert isinstance(file_sink(Path("a.csv"), append=False), FileSink)
        return
    with pytest.raises(ConfigError, match=r"expected a name that ends in \.jsonl, \.csv or \.lp"):
        file_sink(Path(name), append=False)


def test_a_configured_file_is_continued_and_a_replaced_one_is_not(tmp_path: Path) -> None:
    """The sink of a configuration appends, with one header; the other overwrites."""
    path = tmp_path / "out.csv"
    for _ in range(2):
        sink = build_sink(FileSinkConfig(path=str(path)), SinkContext("file"))
        sink.open(None)
        sink.write(ramp_outputs())
        sink.close()
    lines = path.read_text().splitlines()
    assert len(lines) == 11
    assert lines[1:6] == lines[6:]
    fresh = file_sink(path, append=False)
    fresh.open(None)
    fresh.write(ramp_outputs())
    fresh.close()
    assert path.read_text().splitlines() == lines[:6]


def test_a_compressed_file_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    """The gzip header has no time and no file name, so outputs can be compared by hash."""
    found = set()
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        sink = file_sink(tmp_path / name, append=False)
        sink.open(None)
        sink.write(ramp_outputs())
        sink.close()
        found.add((tmp_path / name).read_bytes())
    assert len(found) == 1
    assert gzip.decompress(found.pop()) == JsonEncoder().encode(ramp_outputs())


def test_flushed_rows_are_there_for_a_reader(tmp_path: Path) -> None:
    """After flush everything written can be read, also from a compressed file that is not finished."""
    for name, read in (("out.jsonl", bytes), ("out.jsonl.gz", zlib.decompressobj(31).decompress)):
        path = tmp_path / name
        sink = file_sink(path, append=False)
        sink.open(None)
        sink.write(ramp_outputs())
        mark = sink.flush().file_offset
        assert mark is not None
        assert (mark.path, mark.offset) == (str(path), path.stat().st_size)
        assert read(path.read_bytes()) == JsonEncoder().encode(ramp_outputs())
        sink.close()


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    """The error of a sink that cannot be opened names its file."""
    with pytest.raises(SinkUnavailable, match=r"gone/out\.csv: cannot be written: No such file"):
        file_sink(tmp_path / "gone" / "out.csv", append=False).open(None)


def test_a_full_disk_is_an_error_and_the_file_is_closed(tmp_path: Path) -> None:
    """Writing to a full disk is SinkUnavailable, also on closing, and closing again raises nothing."""
    path = tmp_path / "full.jsonl"
    path.symlink_to("/dev/full")
    sink = file_sink(path, append=False)
    sink.open(None)
    sink.write(ramp_outputs())
    with pytest.raises(SinkUnavailable, match="No space left"):
        sink.flush()
    with pytest.raises(SinkUnavailable, match="No space left"):
        sink.close()
    sink.close()


def test_a_closed_reader_is_an_error_and_nothing_else_breaks() -> None:
    """Writing to a pipe whose reader has closed is SinkUnavailable; the rest of the buffer is discarded."""
    reader, writer = os.pipe()
    os.close(reader)
    before = os.fstat(1)
    with os.fdopen(writer, "wb") as stream:
        sink = StdoutSink(JsonEncoder(), stream)
        sink.open(None)
        with pytest.raises(SinkUnavailable, match="closed by its reader") as caught:
            sink.write(ramp_outputs())
        assert isinstance(caught.value.__cause__, BrokenPipeError)
        sink.close()
    assert os.fstat(1) == before


def test_a_full_disk_behind_standard_output_is_an_error() -> None:
    """A redirected output on a full disk is SinkUnavailable too, not a bug."""
    with Path("/dev/full").open("wb", buffering=0) as stream:
        sink = StdoutSink(JsonEncoder(), stream)
        sink.open(None)
        with pytest.raises(SinkUnavailable, match="No space left"):
            sink.write(ramp_outputs())


def test_standard_output_has_the_requested_form(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The header of CSV is written once."""
    sink = build_sink(StdoutSinkConfig(format="csv"), SinkContext("stdout"))
    sink.open(None)
    sink.write(ramp_outputs(2))
    sink.write(ramp_outputs(3))
    assert sink.flush() == FlushResult()
    text = capfdbinary.readouterr().out
    assert text.count(b"stream,time") == 1
    assert len(text.splitlines()) == 6


def test_a_half_written_row_is_cut_before_more_is_appended(tmp_path: Path) -> None:
    """The partial last row of a killed process does not corrupt the next one."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"whole":1}\n{"half":')
    sink = FileSink(path, JsonEncoder(), append=True)
    sink.open(None)
    sink.close()
    assert path.read_bytes() == b'{"whole":1}\n'


def test_rows_of_other_columns_are_not_appended(tmp_path: Path) -> None:
    """A CSV file of another model is refused, not mixed."""
    path = tmp_path / "out.csv"
    path.write_text("other,columns\n1,2\n")
    sink = FileSink(path, CsvEncoder(), append=True)
    sink.open(None)
    with pytest.raises(SinkUnavailable, match="expected the columns of this model"):
        sink.write(toy_pipeline().process(batch(["a"], [0])))
    sink.close()


def test_a_half_written_header_is_written_again(tmp_path: Path) -> None:
    """After a kill in the first line the file starts with a whole header."""
    path = tmp_path / "out.csv"
    path.write_bytes(b"stream,ti")
    sink = FileSink(path, CsvEncoder(), append=True)
    sink.open(None)
    sink.write(ramp_outputs())
    assert sink.flush() == FlushResult(file_offset=FileOffset(str(path), path.stat().st_size))
    sink.close()
    assert path.read_bytes() == CsvEncoder().header(ramp_outputs().spec) + CsvEncoder().encode(ramp_outputs())


def test_sinks_of_one_form_share_one_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files of one form encode a batch once; a file of another form, and rows taken from it, encode their own."""
    calls: list[int] = []
    encode = JsonEncoder.encode

    def counted(self: JsonEncoder, rows: PredictionBatch) -> bytes:
        calls.append(len(rows))
        return encode(self, rows)

    monkeypatch.setattr(JsonEncoder, "encode", counted)
    sinks = [file_sink(tmp_path / name, append=False) for name in ("a.jsonl", "b.jsonl", "c.csv")]
    out = toy_pipeline().process(batch(["p"] * 3, [0, 1, 2]))
    for sink in sinks:
        sink.open(None)
        sink.write(out)
        sink.flush()
        sink.close()
    assert calls == [3]
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes() == encode(JsonEncoder(), out)
    assert encode_once(JsonEncoder(), out.take(slice(0, 1))) == encode(JsonEncoder(), out).splitlines(keepends=True)[0]
    assert calls == [3, 1]
