"""Columns of names: every type of column gives the same names and numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_gru.config.train_schema import ChannelConfig, InputConfig
from stream_gru.connectors.datasets import read_files
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.decoders.parsing import (
    DictionaryColumn,
    RowFilter,
    read_episodes,
    read_labels,
    read_streams,
)
from stream_gru.core.types import DropReason, SampleBatch

pa = pytest.importorskip("pyarrow")
from pyarrow import csv, parquet  # noqa: E402 - pyarrow is optional

FIELDS = Fields.of(
    InputConfig(time="time", time_unit="s", stream="stream", label="label", episode="sequence"),
    [ChannelConfig(name="v")],
)


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(["a", "b", "", None, "1", 1, 2.0, True]), min_size=1, max_size=6),
    st.lists(st.integers(-1, 5), max_size=30),
)
def test_dictionary_columns_read_like_plain_ones(distinct: list[object], codes: list[int]) -> None:
    """A column of codes gives the same names, in order of first appearance, as its cells one by one."""
    coded = DictionaryColumn(distinct, np.array([min(code, len(distinct) - 1) for code in codes], np.int64))
    plain = list(coded)
    for read in (read_labels, lambda cells: read_streams(cells, RowFilter(len(plain)))):
        (names, column), (expected, each) = read(coded), read(plain)
        assert names == expected
        assert np.array_equal(column, each)
    assert np.array_equal(read_episodes(coded), read_episodes(plain))


def test_rows_with_a_bad_name_are_rejected() -> None:
    """A missing name and one that is no id reject their rows, each for its reason, also in a column of codes."""
    one, other = RowFilter(4), RowFilter(4)
    read_streams(DictionaryColumn(["a", "\n"], np.array([0, 1, -1, 0])), one)
    read_streams(["a", "\n", None, "a"], other)
    assert one.good.tolist() == [True, False, False, True]
    for rows in (one, other):
        found = {reason: bad.tolist() for reason, bad in rows.rejected.items()}
        assert found == {
            DropReason.MISSING_FIELD: [False, False, True, False],
            DropReason.BAD_STREAM_ID: [False, True, False, False],
        }


SEQUENCES = {
    "numbers": pa.array([7, 7, 8, None], pa.int32()),
    "small numbers": pa.array([7, 7, 8, None], pa.uint8()),
    "text": pa.array(["7", "7", "8", None]),
    "codes of text": pa.array(["7", "7", "8", None]).dictionary_encode(),
    "codes of numbers": pa.array([7, 7, 8, None]).dictionary_encode(),
    "fractions": pa.array([7.0, 7.0, 8.0, None]),
}
LABELS = {
    "text": pa.array([None, "up", None, "down"]),
    "codes": pa.array([None, "up", None, "down"]).dictionary_encode(),
    "codes in another order": pa.DictionaryArray.from_arrays(
        pa.array([None, 2, None, 0], pa.int8()), ["down", "x", "up"]
    ),
    "long text": pa.array([None, "up", None, "down"], pa.large_string()),
}


def write_and_read(path: Path, sequence: object, label: object) -> SampleBatch:
    """Write four samples in the format of the name and read them again."""
    table = pa.table({
        "time": [1, 2, 3, 4], "stream": pa.array(["b", "a", "b", "a"]).dictionary_encode(), "v": [1.5, 2.5, 3.5, 4.5],
        "sequence": sequence, "label": label,
    })  # fmt: skip
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        csv.write_csv(pa.table({name: table[name].cast(kind) for name, kind in _PLAIN.items()}), path)
    return read_files([str(path)], FIELDS)


_PLAIN = {name: pa.string() for name in ("stream", "sequence", "label")} | {"time": pa.int64(), "v": pa.float64()}


@pytest.mark.parametrize("sequence", SEQUENCES)
@pytest.mark.parametrize("label", LABELS)
def test_parquet_and_csv_of_one_recording_agree(sequence: str, label: str, tmp_path: Path) -> None:
    """Streams, labels and episodes are the same for every format and type of column."""
    expected = write_and_read(tmp_path / "a.csv", SEQUENCES["numbers"], LABELS["text"])
    found = write_and_read(tmp_path / "a.parquet", SEQUENCES[sequence], LABELS[label])
    assert (found.stream_names, found.labels) == (("b", "a"), ("up", "down"))
    assert (expected.stream_names, expected.labels) == (found.stream_names, found.labels)
    for name in ("stream_index", "label", "episode", "time_ns", "values"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert found.label is not None
    assert found.episode is not None
    assert found.label.tolist() == [-1, 0, -1, 1]
    assert found.episode[-1] == -1
    assert len(set(found.episode[:3].tolist())) == 2


def test_a_column_of_names_may_be_a_channel_too(tmp_path: Path) -> None:
    """A column that is both a name and a channel is read as both."""
    fields = Fields.of(
        InputConfig(time="time", time_unit="s", stream="stream", label="kind"), [ChannelConfig(name="kind")]
    )
    table = pa.table({"time": [1, 2, 3], "stream": ["a", "a", "a"], "kind": pa.array([3, 5, 3], pa.int32())})
    parquet.write_table(table, tmp_path / "a.parquet")
    batch = read_files([str(tmp_path / "a.parquet")], fields)
    assert batch.values[:, 0].tolist() == [3.0, 5.0, 3.0]
    assert batch.label is not None
    assert [batch.labels[code] for code in batch.label] == ["3", "5", "3"]
