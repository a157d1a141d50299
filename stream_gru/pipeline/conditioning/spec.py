"""Parameters of the conditioning rules, and their columns in the state table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_gru.config.field_types import CalendarFeature
from stream_gru.config.train_schema import ConditioningConfig
from stream_gru.core.types import F32, NS_PER_S, ResetReason
from stream_gru.pipeline.state_table import Column

NEVER = np.iinfo(np.int64).min // 2  # event time of "no sample yet"; differences to it do not overflow int64


@dataclass(frozen=True, slots=True)
class ConditioningSpec:
    """Parameters of the conditioning rules for one model.

    ``period_ns``: sample period; ``max_fill_steps``: longest run of imputed steps or values; ``clock_backwards_ns``:
    smallest jump back that counts as a clock that was set back; ``low, high``: (C,) float32 range of each channel,
    -inf and inf without one; ``categorical``: indices of channels with integer codes; ``calendar``: features appended
    as inputs; ``window``: W steps, 0 in the stateful regime.
    """

    period_ns: int
    max_fill_steps: int
    clock_backwards_ns: int
    low: F32
    high: F32
    categorical: tuple[int, ...] = ()
    calendar: tuple[CalendarFeature, ...] = ()
    window: int = 0

    @staticmethod
    def build(
        config: ConditioningConfig,
        period_s: float,
        limits: list[tuple[float | None, float | None, int]],
        calendar: list[CalendarFeature],
        window: int,
    ) -> ConditioningSpec:
        """Build from configuration; ``limits``: min, max and number of categories (0: a quantity) of each channel."""
        ranges = [(0, kinds - 1) if kinds else (low, high) for low, high, kinds in limits]
        return ConditioningSpec(
            period_ns=max(1, round(period_s * NS_PER_S)),
            max_fill_steps=config.max_fill_steps,
            clock_backwards_ns=round(config.clock_backwards_s * NS_PER_S),
            low=np.array([-np.inf if low is None else low for low, _ in ranges], np.float32),
            high=np.array([np.inf if high is None else high for _, high in ranges], np.float32),
            categorical=tuple(index for index, (_, _, kinds) in enumerate(limits) if kinds),
            calendar=tuple(calendar),
            window=window,
        )


def conditioning_columns(channels: int) -> list[Column]:
    """Columns of the state table that conditioning reads and writes, for a model of C channels."""
    return [
        Column("max_event_ns", (), np.int64, NEVER),  # largest event time, dropped samples of rule 2 included
        Column("applied_ns", (), np.int64, NEVER),  # event time of the last step
        Column("applied_values", (channels,), np.float32, np.nan),  # of the last step
        Column("last_valid", (channels,), np.float32, np.nan),  # last valid value of each channel
        Column("invalid_run", (channels,), np.int32, 0),  # invalid values in a row
        Column("episode", (), np.int64, -1),
        Column("pending_reset", (), np.uint8, ResetReason.FIRST_SAMPLE),  # before the next step
        Column("steps_since_reset", (), np.int64, 0),
    ]
