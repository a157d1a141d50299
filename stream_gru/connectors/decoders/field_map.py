"""Which field of a record means what; and how named columns become a SampleBatch, shared by all decoders.

The sample of a row never depends on other rows: a field that no row of a message has is read as missing in each.
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
    Column,
    DictionaryColumn,
    InvalidColumn,
    RowFilter,
    read_episodes,
    read_flags,
    read_integers,
    read_labels,
    read_numbers,
    read_streams,
    read_times,
    reject_unrepresentable,
)
from stream_gru.connectors.decoders.rejects import Origin, Rejects
from stream_gru.core.errors import ConfigError
from stream_gru.core.types import F32, I32, NS_PER_S, STREAM_ID, DropReason, Mask, RawMessage, SampleBatch, empty_batch
from stream_gru.model.manifest import Channel

__all__ = ["OWN_TIME", "Column", "DictionaryColumn", "Fields", "InvalidColumn", "build_batch", "stream_id"]

# The field for the time, in nanoseconds, of formats that define how a time is written.
OWN_TIME = "_time"
# A device's clock may be at most this far ahead of ours: a wrong time zone passes, a wrong year does not.
_AHEAD_NS = 86_400 * NS_PER_S
# 2000-01-01: a device with an earlier time has not set its clock.  An arrival before it shows that ours is not set:
# then no time is checked.
_EARLIEST_NS = 946_684_800 * NS_PER_S
_INPUT_KEYS = ("delimiter", "time", "time_unit", "stream", "label", "reset", "episode", "device_seq")


@dataclass(frozen=True, slots=True)
class Fields:
    """Which field of a record means what.

    ``input``    names of time, stream, label and so on; ``time`` may be ``""``: the time of arrival counts
    ``columns``  the field of each channel; ``channels`` their names in the model, where known
    ``scale, offset``  value = number * scale + offset, for each channel; empty: unchanged
    ``units``    the unit expected of each channel, ``""`` for any; empty: any
    ``names``    names of values that carry none: cells without a header, members of a struct, elements of a vector
    ``struct, checksum, clock``  see `SourceInputConfig`
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
        """Fields of a bundle's or a configuration's channels; a channel's column has the channel's name by default."""
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
        """Fields of one source: `of`, overridden by the source's own keys.  Raises ConfigError."""
        base = Fields.of(input_config, channels)
        overrides = {key: getattr(source_input, key) for key in _INPUT_KEYS}
        wanted = replace_keys(input_config, **{key: value for key, value in overrides.items() if value is not None})
        _check(source_input, source_channels, wanted, base.channels)
        by_name = {channel.name: channel for channel in source_channels}
        each = [by_name.get(name, SourceChannelConfig(name=name)) for name in base.channels]
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
        """Fields that every record needs."""
        return tuple(name for name in (self.input.time, self.input.stream, *self.columns) if name)

    @property
    def named(self) -> tuple[str, ...]:
        """All fields that are read, required ones first."""
        wanted = self.input
        optional = (wanted.label, wanted.reset, wanted.episode, wanted.device_seq)
        return self.required + tuple(name for name in optional if name)

    @property
    def names_only(self) -> frozenset[str]:
        """Fields that are read as names only: those of stream, label and episode."""
        wanted = self.input
        return frozenset((wanted.stream, wanted.label, wanted.episode)) - {
            "", wanted.time, wanted.reset, wanted.device_seq, *self.columns,
        }  # fmt: skip

    def index_of(self, channel: str) -> int:
        """Index of the channel with this name, or whose field has it; -1 for none."""
        for known in (self.channels, self.columns):
            if channel in known:
                return known.index(channel)
        return -1

    def with_own_time(self) -> Fields:
        """The same fields with the time in nanoseconds in `OWN_TIME`; none where the time of arrival counts."""
        time = OWN_TIME if self.input.time else ""
        return replace(self, input=replace_keys(self.input, time=time, time_unit="ns"))


def checked_names(fields: Fields, *, complete: bool = False) -> tuple[str, ...]:
    """Return ``fields.names``, at least one of which must be a channel's field; an empty name is an ignored value.

    ``complete``: time and stream must be among them, too.  Raises ConfigError.
    """
    names = fields.names
    shown = ", ".join(names) or "none"
    if set(names).isdisjoint(fields.columns):
        channels = " or ".join(fields.columns)
        raise ConfigError(f"source.input: fields: expected the field of a channel ({channels}), got {shown}")
    for name in (fields.input.time, fields.input.stream) if complete else ():
        if name and name not in names:
            raise ConfigError(f"source.input: fields: expected {name!r} as one of the names, got {shown}")
    return names


def _check(
    own: SourceInputConfig, channels: Sequence[SourceChannelConfig], wanted: InputConfig, known: Sequence[str]
) -> None:
    """Raises ConfigError for combinations that cannot be read."""
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
    for name in own.fields:
        if name and own.fields.count(name) > 1:
            raise ConfigError(f"source.input: fields: expected each name once, got {name!r} twice")
    if own.clock == "boot" and (not wanted.time or wanted.time_unit == "iso"):
        got = f'time_unit = "{wanted.time_unit}"' if wanted.time else 'time = ""'
        raise ConfigError(f'source.input: clock = "boot": expected a time in s, ms, us or ns, got {got}')
    try:
        struct.calcsize(own.struct)
    except (struct.error, ValueError) as error:
        raise ConfigError(f"source.input: struct: expected a format of Python's struct, got {own.struct!r}") from error


def build_batch(
    fields: Fields,
    count: int,
    column: Callable[[str], Column | None],
    origin: Origin,
    rejects: Rejects,
    *,
    place_of: Callable[[int], int] = lambda row: 0,
    keys: Sequence[str] | None = None,
) -> SampleBatch:
    """Build a batch of the good ones of ``count`` rows; the bad ones go to ``rejects``.

    ``column(name)``  values of a field, (count,): text, numbers, bool or None; instants for the time; an
                      `InvalidColumn`; or None where no row has the field
    ``origin``        the message of all rows, or of each: its key names the stream of records that do not name their
                      own, its arrival (0: unknown, a recording) is that of the rows
    ``place_of(row)`` where a row stands in its message, as in `Rejects`
    ``keys``          (count,) in place of the messages' keys
    """
    wanted = fields.input
    if not count:
        return empty_batch(len(fields.columns))

    rows = RowFilter(count)
    arrival = np.empty(count, np.int64)
    if isinstance(origin, RawMessage):
        arrival[:], key = origin.arrival_ns, keys or origin.key
    else:
        arrival[:], key = [message.arrival_ns for message in origin], keys or [message.key for message in origin]
    live = bool(arrival.any())

    def cells(name: str, instants: bool = False) -> Column:
        found = column(name)
        if found is None:
            return [None] * count
        if not instants and isinstance(found, np.ndarray) and found.dtype.kind == "M":
            found = InvalidColumn(np.isnat(found).tolist())
        if not isinstance(found, InvalidColumn):
            return found
        rows.reject(~np.array(found, np.bool_), DropReason.TYPE)
        return [None] * count

    if wanted.time:
        time_ns = read_times(cells(wanted.time, instants=True), wanted.time_unit, rows)
        if live and fields.clock == "epoch":
            wrong = (time_ns < _EARLIEST_NS) | (time_ns - arrival > _AHEAD_NS)
            rows.reject(wrong & (arrival >= _EARLIEST_NS), DropReason.TIMESTAMP)
    else:
        time_ns = arrival.copy()
        rows.reject(arrival == 0, DropReason.MISSING_FIELD)
    values = _read_values(fields, cells, rows)
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
        episode=read_episodes(cells(wanted.episode)) if wanted.episode else None,
        arrival_ns=arrival if live else None,
    )
    if not rows.rejected:
        return batch
    for reason, bad in rows.rejected.items():
        rejects.add_rows(reason, np.flatnonzero(bad), origin, place_of)
    return batch.take(rows.good)


def _read_values(fields: Fields, cells: Callable[[str], Column], rows: RowFilter) -> F32:
    """The values of all channels, (N, C) float32, after scale and offset; NaN where there is none."""
    values = np.full((len(rows.good), len(fields.columns)), np.nan, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for index, name in enumerate(fields.columns):
            numbers = read_numbers(cells(name), rows)
            if fields.scale and (fields.scale[index], fields.offset[index]) != (1.0, 0.0):
                values[:, index] = numbers * fields.scale[index] + fields.offset[index]
                reject_unrepresentable(cells(name), numbers, values[:, index], rows)
            else:
                values[:, index] = numbers
        large = np.abs(values) >= EXACT
        if large.any():
            for index in np.flatnonzero(large.any(axis=0)).tolist():
                name = fields.columns[index]
                reject_unrepresentable(cells(name), read_numbers(cells(name), rows), values[:, index], rows)
    return values


def stream_id(text: str) -> str:
    """Make a stream id of a file's name: characters that an id may not contain become ``_``."""
    return re.sub(r"[^A-Za-z0-9_.:/ -]", "_", text)[:128] or "_"


def _streams_of_keys(keys: str | Sequence[str], live: Mask, rows: RowFilter) -> tuple[tuple[str, ...], I32]:
    """The streams of records that do not name their own: (names, index of each row's); ``keys`` of all rows or of each.

    Decision: a file's name, which a user chose, is converted to an id; a live key is accepted or rejected as it is, so
    that two devices never become one stream.
    """
    names = [keys] if isinstance(keys, str) else list(dict.fromkeys(keys))
    if len(names) == 1:
        stream: I32 = np.zeros(len(live), np.int32)
    else:
        known = {name: code for code, name in enumerate(names)}
        stream = np.array([known[key] for key in keys], np.int32)
    bad = [STREAM_ID.fullmatch(name) is None for name in names]
    if not any(bad):
        return tuple(names), stream
    rows.reject(live & np.array(bad, np.bool_)[stream], DropReason.BAD_STREAM_ID)
    ids: dict[str, int] = {}
    merged = np.array([ids.setdefault(stream_id(name), len(ids)) for name in names], np.int32)
    return tuple(ids), merged[stream]
