"""Recording: the rows of one simulated stream with their event times."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Labels = NDArray[np.str_]

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, eq=False)
class Recording:
    """N rows of one stream, in the order in which they were written.

    stream_id: name of the device, equal to the stem of the file it is written to.
    stream_column: heading of the column that holds the stream id.
    channels: C channel names; `decimals` gives the resolution of each, in digits after the point.
    time_ns: (N,) int64, event time in ns since 1970-01-01 UTC; correct even when rows are out of order.
    values: (N, C) float64 in the unit of each channel; NaN is an empty value.
    labels: (N,) the mode of each row, or None for a recording without classes.
    """

    stream_id: str
    stream_column: str
    channels: tuple[str, ...]
    decimals: tuple[int, ...]
    time_ns: I64
    values: F64
    labels: Labels | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.time_ns)

    def channel(self, name: str) -> F64:
        """Return the (N,) values of one channel."""
        return self.values[:, self.channels.index(name)]

    def take(self, rows: I64) -> "Recording":
        """Return the recording made of these row numbers, in this order; a number may occur twice."""
        labels = None if self.labels is None else self.labels[rows]
        return Recording(
            self.stream_id,
            self.stream_column,
            self.channels,
            self.decimals,
            self.time_ns[rows],
            self.values[rows],
            labels,
        )


def row_times(n: int, start_ns: int, period_s: float = 1.0) -> I64:
    """Return (n,) event times in ns, `period_s` apart; each computed from the start, so that errors do not add up."""
    elapsed = np.rint(np.arange(n) * (period_s * NS_PER_S)).astype(np.int64)
    return np.asarray(start_ns + elapsed)
