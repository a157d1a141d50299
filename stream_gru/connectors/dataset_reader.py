"""Whole recordings as one batch, by the same sources and decoders as live data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from stream_gru.connectors.decoders.field_map import Fields, stream_id
from stream_gru.connectors.decoders.registry import load_decoder
from stream_gru.connectors.sources.files import FileSource, expand, stem
from stream_gru.connectors.sources.registry import common_format
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


def shared_stream(paths: Sequence[Path], fields: Fields) -> Iterator[str]:
    """Yield one warning when files of one name would be taken for one device, as no column names it."""
    if fields.input.stream:
        return
    first: dict[str, Path] = {}
    twice = [(first[name], path) for path in paths if first.setdefault(name := stream_id(stem(path)), path) != path]
    if twice:
        one, other = twice[0]
        more = f" (and {len(twice) - 1:,} more)" if len(twice) > 1 else ""
        yield f"warning: {one} and {other}{more} are read as one stream {stream_id(stem(one))!r}; see input.stream"
