"""Formats that say themselves how a time is written: it becomes a field of nanoseconds, whatever [input] calls it."""

from __future__ import annotations

from dataclasses import replace

from msgspec.structs import replace as replace_keys

from stream_gru.connectors.decoders.field_map import Fields

# Where decoders put the time that the format itself carries.
TIME = "_time"


def with_own_time(fields: Fields) -> Fields:
    """The same fields, the time in nanoseconds in `TIME`; none where the time of arrival was asked for."""
    return replace(fields, input=replace_keys(fields.input, time=TIME if fields.input.time else "", time_unit="ns"))
