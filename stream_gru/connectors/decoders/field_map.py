"""Fields: which field of a record means what; and how named columns become a SampleBatch, shared by all decoders.

What a row becomes never depends on the rows beside it: a field that no row of a message has is read as missing in each.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from msgspec.structs import replace as replace_keys

from stream_gru.config.run_schema import SourceChannelConfig, SourceInputConfig
from stream_gru.config.train_schema import ChannelConfig, InputConfig
from stream_gru.connectors.decoders.parsing import (
    EXACT,
    Coded,
    Column,
    Mistyped,
    Rows,
    drop_unfit,
    read_flags,
    read_integers,
    read_labels,
    read_numbers,
    read_sequences,
    read_streams,
    read_times,
)
from stream_gru.core.errors import ConfigError
from stream_gru.core.types import I32, NS_PER_S, STREAM_ID, DropReason, Mask, SampleBatch, empty_batch
from stream_gru.model.manifest import Channel

__all__ = ["Coded", "Column", "Fields", "Mistyped", "assemble", "stream_id"]

# A device's clock may be this far ahead of ours: time zones set wrongly, not years.
_AHEAD_NS = 86_400 * NS_PER_S
# 2000-01-01: a device that says less has no clock yet.  By an arrival before it nobody is judged: then we have none.
_EARLIEST_NS = 946_684_800 * NS_PER_S
_INPUT_KEYS = ("delimiter", "time", "time_unit", "stream", "label", "reset", "episode", "device_seq")


@dataclass(frozen=True, slots=True)
class Fields:
    """Which field of a record means what.

    ``input``    names of time, stream, label and so on; ``time`` may be ``""``: that of arrival counts
    ``columns``  the field of each channel; ``channels`` what the model calls them, where known
    ``scale, offset``  value = number * scale + offset, of each channel; empty: as it comes
    ``units``    the unit expected of each channel, ``""`` for any; empty: any
    ``names``    names of what has none, see `SourceInputConfig`; so are ``struct``, ``checksum`` and ``clock``
    """

    input: InputConfig
    columns: tuple[str, ...]
    channels: tuple[str, ...] = ()
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    units: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    struct: str = ""
    checksum: Literal["none", "crc16", "crc32"] = "crc16"
    clock: Literal["epoch", "boot"] = "epoch"

    @staticmethod
    def of(input_config: InputConfig, channels: Sequence[Channel] | Sequence[ChannelConfig]) -> Fields:
        """Fields of a bundle's or a configuration's channels; a channel's column is called as itself by default."""
        return Fields(
            input_config,
            tuple(channel.column or channel.name for channel in channels),
            tuple(channel.name for channel in channels),
        )

    @staticmethod
    def for_source(
        input_config: InputConfig,
        channels: Sequence[Channel] | Sequence[ChannelConfig],
        source_input: SourceInputConfig,
        source_channels: Sequence[SourceChannelConfig],
    ) -> Fields:
        """Fields of one source: `of`, with what the source says of itself.  Raises ConfigError."""
        base = Fields.of(input_config, channels)
        said = {key: getattr(source_input, key) for key in _INPUT_KEYS}
        wanted = replace_keys(input_config, **{key: value for key, value in said.items() if value is not None})
        _check(source_input, source_channels, wanted, base.channels)
        mine = {channel.name: channel for channel in source_channels}
        each = [mine.get(name, SourceChannelConfig(name=name)) for name in base.channels]
        linear = any((one.scale, one.offset) != (1.0, 0.0) for one in each)
        return Fields(
            wanted,
            tuple(one.column or column for one, column in zip(each, base.columns, strict=True)),
            base.channels,
            scale=tuple(one.scale for one in each) if linear else (),
            offset=tuple(one.offset for one in each) if linear else (),
            units=tuple(one.unit for one in each) if any(one.unit for one in each) else (),
            names=tuple(source_input.fields),
            struct=source_input.struct,
            checksum=source_input.checksum,
            clock=source_input.clock,
        )

    @property
    def required(self) -> tuple[str, ...]:
        """Fields without which no record can be read."""
        return tuple(name for name in (self.input.time, self.input.stream, *self.columns) if name)

    @property
    def named(self) -> tuple[str, ...]:
        """All fields that are read where they are present."""
        wanted = self.input
        optional = (wanted.label, wanted.reset, wanted.episode, wanted.device_seq)
        return self.required + tuple(name for name in optional if name)

    @property
    def names_only(self) -> frozenset[str]:
        """Fields that are read as names and as nothing else: of stream, label and sequence."""
        wanted = self.input
        return frozenset((wanted.stream, wanted.label, wanted.episode)) - {
            "", wanted.time, wanted.reset, wanted.device_seq, *self.columns,
        }  # fmt: skip

    def index_of(self, channel: str) -> int:
        """Which channel a topic speaks of, by its name or its field's; -1 for none."""
        for known in (self.channels, self.columns):
            if channel in known:
                return known.index(channel)
        return -1


def _check(
    said: SourceInputConfig, channels: Sequence[SourceChannelConfig], wanted: InputConfig, known: Sequence[str]
) -> None:
    """Raises ConfigError for what can never be meant."""
    names = [channel.name for channel in channels]
    for channel in channels:
        if channel.name not in known:
            raise ConfigError(f"source.channel: name: expected one of {', '.join(known)}, got {channel.name!r}")
        if names.count(channel.name) > 1:
            raise ConfigError(f"source.channel: name: expected each channel once, got {channel.name!r} twice")
        if not math.isfinite(channel.scale) or channel.scale == 0:
            raise ConfigError(
                f"source.channel: scale of {channel.name}: expected a number other than 0, got {channel.scale}"
            )
        if not math.isfinite(channel.offset):
            raise ConfigError(f"source.channel: offset of {channel.name}: expected a number, got {channel.offset}")
    for name in said.fields:
        if name and said.fields.count(name) > 1:
            raise ConfigError(f"source.input: fields: expected each name once, got {name!r} twice")
    if said.clock == "boot" and (not wanted.time or wanted.time_unit == "iso"):
        got = f'time_unit = "{wanted.time_unit}"' if wanted.time else 'time = ""'
        raise ConfigError(f'source.input: clock = "boot": expected a time in s, ms, us or ns, got {got}')
    try:
        struct.calcsize(said.struct)
    except (struct.error, ValueError) as error:
        raise ConfigError(f"source.input: struct: expected a format of Python's struct, got {said.struct!r}") from error


def assemble(
    fields: Fields,
    count: int,
    column: Callable[[str], Column | None],
    key: str | Sequence[str],
    arrival_ns: int | Sequence[int] = 0,
) -> SampleBatch:
    """Build a batch of ``count`` rows.

    ``column(name)`` gives the values of a field (text, numbers, bool or None for each row; instants for the time; or
    `Mistyped`), or None where no row has it; ``key`` names the stream of records that do not name their own and
    ``arrival_ns`` is when they came (0: unknown, a recording), both of all rows or of each.
    """
    wanted = fields.input
    if not count:
        return empty_batch(len(fields.columns))

    rows = Rows(count)
    arrival = np.empty(count, np.int64)
    arrival[:] = arrival_ns
    live = bool(arrival.any())

    def cells(name: str, instants: bool = False) -> Column:
        found = column(name)
        if found is None:
            return [None] * count
        if not instants and isinstance(found, np.ndarray) and found.dtype.kind == "M":
            found = Mistyped(np.isnat(found).tolist())
        if not isinstance(found, Mistyped):
            return found
        rows.drop(~np.array(found, np.bool_), DropReason.TYPE)
        return [None] * count

    if wanted.time:
        time_ns = read_times(cells(wanted.time, instants=True), wanted.time_unit, rows)
        if live and fields.clock == "epoch":
            wrong = (time_ns < _EARLIEST_NS) | (time_ns - arrival > _AHEAD_NS)
            rows.drop(wrong & (arrival >= _EARLIEST_NS), DropReason.TIMESTAMP)
    else:
        time_ns = arrival.copy()
        rows.drop(arrival == 0, DropReason.MISSING_FIELD)
    values = np.full((count, len(fields.columns)), np.nan, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for index, name in enumerate(fields.columns):
            numbers = read_numbers(cells(name), rows)
            if fields.scale and (fields.scale[index], fields.offset[index]) != (1.0, 0.0):
                values[:, index] = numbers * fields.scale[index] + fields.offset[index]
                drop_unfit(cells(name), numbers, values[:, index], rows)
            else:
                values[:, index] = numbers
        large = np.abs(values) >= EXACT
        if large.any():
            for index in np.flatnonzero(large.any(axis=0)).tolist():
                name = fields.columns[index]
                drop_unfit(cells(name), read_numbers(cells(name), rows), values[:, index], rows)
    if wanted.stream:
        streams, stream = read_streams(cells(wanted.stream), rows)
    else:
        streams, stream = _streams_of_keys(key, arrival != 0, rows)
    labels, label = read_labels(cells(wanted.label)) if wanted.label else ((), None)
    batch = SampleBatch(
        stream_names=streams,
        stream_index=stream,
        time_ns=time_ns,
        values=values,
        device_seq=read_integers(cells(wanted.device_seq), rows) if wanted.device_seq else None,
        label=label,
        labels=labels,
        reset=read_flags(cells(wanted.reset), rows) if wanted.reset else None,
        episode=read_sequences(cells(wanted.episode)) if wanted.episode else None,
        arrival_ns=arrival if live else None,
        rejected=rows.rejected,
    )
    if not rows.rejected:
        return batch
    return replace(batch.take(rows.good), rejected=rows.rejected)


def stream_id(text: str) -> str:
    """Make a stream id of a file's name: what an id may not contain becomes ``_``."""
    return re.sub(r"[^A-Za-z0-9_.:/ -]", "_", text)[:128] or "_"


def _streams_of_keys(keys: str | Sequence[str], live: Mask, rows: Rows) -> tuple[tuple[str, ...], I32]:
    """The streams of records that do not name their own.

    Decision: a file's name is made an id, as a user chose it; what a device calls itself is taken or refused, so that
    no two devices become one.
    """
    if isinstance(keys, str):
        stream: I32 = np.zeros(len(live), np.int32)
        names = [keys]
    else:
        known: dict[str, int] = {}
        stream = np.array([known.setdefault(key, len(known)) for key in keys], np.int32)
        names = list(known)
    bad = [STREAM_ID.fullmatch(name) is None for name in names]
    if not any(bad):
        return tuple(names), stream
    rows.drop(live & np.array(bad, np.bool_)[stream], DropReason.BAD_STREAM_ID)
    ids: dict[str, int] = {}
    merged = np.array([ids.setdefault(stream_id(name), len(ids)) for name in names], np.int32)
    return tuple(ids), merged[stream]
