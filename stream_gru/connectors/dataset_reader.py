"""Whole recordings as one batch, by the same sources and decoders as live data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.decoders.registry import load_decoder
from stream_gru.connectors.sources.files import FileSource, common_format, expand
from stream_gru.core.concatenate import concatenate
from stream_gru.core.errors import DataError, EndOfInput
from stream_gru.core.protocols import Decoder, Source
from stream_gru.core.types import SampleBatch, merge_rejected

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
