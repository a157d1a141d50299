"""Calendar inputs: position of a sample in the hour, day, week or year, as sine and cosine of a phase."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stream_gru.config.field_types import CalendarFeature
from stream_gru.core.types import F32, I64, NS_PER_S

_DAY_S = 86_400
# Length of a cycle and offset of 1970-01-01 in it, in seconds: that day was a Thursday, weeks start on Monday.
CYCLE_S: dict[CalendarFeature, tuple[float, float]] = {
    "minute_of_hour": (3_600, 0),
    "hour_of_day": (_DAY_S, 0),
    "day_of_week": (7 * _DAY_S, 3 * _DAY_S),
    "day_of_year": (365.2425 * _DAY_S, 0),
}


def calendar_inputs(time_ns: I64, features: Sequence[CalendarFeature]) -> F32:
    """Return sine and cosine of each feature's phase, UTC: ``time_ns`` (T,) -> (T, 2 * len(features)) float32."""
    out = np.empty((len(time_ns), 2 * len(features)), np.float32)
    seconds = time_ns / NS_PER_S
    for index, feature in enumerate(features):
        length, offset = CYCLE_S[feature]
        phase = 2 * np.pi * ((seconds + offset) % length) / length
        out[:, 2 * index], out[:, 2 * index + 1] = np.sin(phase), np.cos(phase)
    return out
