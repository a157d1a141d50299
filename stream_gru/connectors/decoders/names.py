"""Names of what has none: columns without a header, members of a struct, values of a vector."""

from __future__ import annotations

from collections.abc import Sequence

from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.core.errors import ConfigError


def checked_names(fields: Fields, names: Sequence[str], beside: bool = True) -> tuple[str, ...]:
    """Return the names, of which at least one is a channel's.  An empty name is a value that nobody wants.

    A source may bring some channels only.  ``beside``: time and stream may stand elsewhere than among the named.
    Raises ConfigError.
    """
    shown = ", ".join(names) or "none"
    if set(names).isdisjoint(fields.columns):
        raise ConfigError(f"source.input: fields: expected a channel's among them ({_any(fields)}), got {shown}")
    for name in () if beside else (fields.input.time, fields.input.stream):
        if name and name not in names:
            raise ConfigError(f"source.input: fields: expected {name!r} among them, got {shown}")
    return tuple(names)


def _any(fields: Fields) -> str:
    return " or ".join(fields.columns)
