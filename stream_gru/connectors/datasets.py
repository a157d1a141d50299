"""Recordings of samples: read for training, evaluation and generation; written by `generate` and the recipes."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.registry import load_decoder
from stream_gru.connectors.sources.files import FileSource, common_format, expand, file_format
from stream_gru.core.concatenate import concatenate
from stream_gru.core.errors import ConfigError, DataError, EndOfInput
from stream_gru.core.protocols import Decoder, Source
from stream_gru.core.timestamps import UNITS_NS, format_iso
from stream_gru.core.types import F32, I32, I64, SampleBatch, merge_rejected

_BLOCK_ROWS = 65_536


def read_files(patterns: Sequence[str], fields: Fields) -> SampleBatch:
    """Read all files that match, as one batch.

    Raises DataError (no file, no rows, a column is missing) and ConfigError (files of different formats).
    """
    paths = expand(patterns)
    kind = common_format(paths, fields.input.format)
    batch = read_all(FileSource(paths, kind, _BLOCK_ROWS), load_decoder(kind, fields), len(fields.columns))
    if not len(batch):
        why = ", ".join(f"{n:,} {reason.text}" for reason, n in batch.rejected_counts.items()) or "there is none"
        raise DataError(f"{', '.join(patterns)}: no row could be read: {why}; see [input] and [[channel]]")
    return batch


def read_all(source: Source, decoder: Decoder, channels: int) -> SampleBatch:
    """Read a source from its beginning to its end, as one batch; it is closed in any case."""
    source.open(None)
    batches: list[SampleBatch] = []
    try:
        while True:
            batches.append(_without_messages(decoder.decode(source.poll(1, 0))))
    except EndOfInput:
        return concatenate(batches, channels)
    finally:
        source.close()


def _without_messages(batch: SampleBatch) -> SampleBatch:
    """The batch with its rejected records counted only, so that it keeps no payload in memory."""
    if not batch.rejected:
        return batch
    return replace(batch, rejected=merge_rejected(entry._replace(message=None) for entry in batch.rejected))


_LINE_ENDS = frozenset("\r\n\0")
Cell = str | int | float | bool | None


def write_recording(path: Path, batch: SampleBatch, fields: Fields) -> None:
    """Write samples to a file whose format follows from its name: ``.csv`` or ``.jsonl``, perhaps ``.gz``.

    Raises ConfigError as `recording_text` does, and for another name or another format than the bundle states.
    """
    kind = recording_format(path, fields)
    data = recording_text(batch, fields, kind).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix.lower() == ".gz" else data)


def recording_format(path: Path, fields: Fields) -> str:
    """The format that a file must have to be read back, ``csv`` or ``jsonl``.  Raises ConfigError."""
    kind = file_format(path)
    if kind == "parquet":
        raise ConfigError(f"{path}: expected a name ending in .csv or .jsonl (or .gz)")
    if fields.input.format not in ("auto", kind):
        raise ConfigError(f"{path}: expected the format {fields.input.format}, which the bundle's input.format states")
    return kind


def recording_text(batch: SampleBatch, fields: Fields, kind: str) -> str:
    """Samples as ``csv`` (with a header) or ``jsonl``, in their order.

    Raises ConfigError for several streams where the bundle's records do not name theirs, and for a CSV in which a name
    would hold a line end.
    """
    if not fields.input.stream and len(np.unique(batch.stream_index)) > 1:
        raise ConfigError(
            "expected one stream, as the bundle's records do not name theirs (input.stream) and a file is one stream,"
            f" got {len(np.unique(batch.stream_index))}"
        )
    columns = _columns(batch, fields)
    if kind == "jsonl":
        names = list(columns)
        rows = zip(*columns.values(), strict=True)
        return "".join(json.dumps(_present(names, row)) + "\n" for row in rows)
    for name, column in columns.items():
        if any(isinstance(cell, str) and not _LINE_ENDS.isdisjoint(cell) for cell in [name, *column]):
            raise ConfigError(f"column {name!r}: a line of CSV cannot hold a line end; write .jsonl")
    text = io.StringIO()
    writer = csv.writer(text, delimiter=fields.input.delimiter, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _columns(batch: SampleBatch, fields: Fields) -> dict[str, Sequence[Cell]]:
    """The columns of the file by name; None for an absent value."""
    wanted = fields.input
    columns: dict[str, Sequence[Cell]] = {wanted.time: _times(batch.time_ns, wanted.time_unit)}
    if wanted.stream:
        columns[wanted.stream] = [batch.stream_names[index] for index in batch.stream_index.tolist()]
    for index, name in enumerate(fields.columns):
        columns[name] = _numbers(batch.values[:, index])
    if wanted.label and batch.label is not None:
        columns[wanted.label] = _labels(batch.label, batch.labels)
    if wanted.reset and batch.reset is not None:
        columns[wanted.reset] = [int(flag) for flag in batch.reset.tolist()]
    if wanted.episode and batch.episode is not None:
        columns[wanted.episode] = [None if key < 0 else str(key) for key in batch.episode.tolist()]
    if wanted.device_seq and batch.device_seq is not None:
        columns[wanted.device_seq] = [None if number < 0 else number for number in batch.device_seq.tolist()]
    return columns


def _times(time_ns: I64, unit: str) -> Sequence[Cell]:
    if unit == "iso":
        return format_iso(time_ns)
    width = next(width for name, width in UNITS_NS.items() if name == unit)
    return [time // width if time % width == 0 else time / width for time in time_ns.tolist()]


def _numbers(values: F32) -> Sequence[Cell]:
    """Whole numbers without a point, as categories are written; None for a missing value."""
    texts = [f"{value:.9g}" for value in values.tolist()]
    return [
        None if text in ("nan", "inf", "-inf") else int(text) if text.isdecimal() else float(text) for text in texts
    ]


def _labels(codes: I32, labels: Sequence[str]) -> Sequence[Cell]:
    return [None if code < 0 else labels[code] for code in codes.tolist()]


def _present(names: Sequence[str], row: Sequence[Cell]) -> dict[str, Cell]:
    return {name: cell for name, cell in zip(names, row, strict=True) if cell is not None}
