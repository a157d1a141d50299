"""Whole recordings as one batch, by the same sources and decoders as live data."""

from __future__ import annotations

from collections.abc import Sequence

from stream_gru.decoders import load_decoder
from stream_gru.decoders.fields import Fields
from stream_gru.errors import DataError, EndOfInput
from stream_gru.sources import common_format
from stream_gru.sources.files import FileSource, expand
from stream_gru.types import SampleBatch, concatenate

_BLOCK_ROWS = 65_536


def read_files(patterns: Sequence[str], fields: Fields) -> SampleBatch:
    """Read all files that match, as one batch.

    Raises DataError (no file, no rows, a column is missing) and ConfigError (files of different formats).
    """
    paths = expand(patterns)
    kind = common_format(paths, fields.input.format)
    source, decoder = FileSource(paths, kind, _BLOCK_ROWS), load_decoder(kind, fields)
    source.open(None)
    batches: list[SampleBatch] = []
    try:
        while True:
            batches.append(decoder.decode(source.poll(1, 0)))
    except EndOfInput:
        pass
    batch = concatenate(batches, len(fields.columns)) if batches else None
    if batch is None or not len(batch):
        reasons = {} if batch is None else batch.rejected
        why = ", ".join(f"{n:,} {reason.text}" for reason, n in reasons.items()) or "there is none"
        raise DataError(f"{', '.join(patterns)}: no row could be read: {why}; see [input] and [[channel]]")
    return batch
