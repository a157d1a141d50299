"""The summary of a run: counts, throughput, latency, scores."""

from __future__ import annotations

import resource
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stream_gru.core.prediction import BatchCounts
from stream_gru.pipeline.scoring import ScoreTotals

_LATENCIES = 4096  # of the last batches: the memory of a daemon must not grow


@dataclass
class RunSummary:
    """Counts of one run; `add` takes each batch."""

    received: int = 0
    applied: int = 0
    batches: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    resets: Counter[str] = field(default_factory=Counter)
    labelled: int = 0
    correct: int = 0
    streams: int = 0
    seconds: float = 0.0
    first_output_s: float | None = None
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES))

    def add(self, counts: BatchCounts, seconds: float, streams: int) -> None:
        """Count one batch that took ``seconds`` from bytes to written outputs."""
        self.received += counts.received
        self.applied += counts.applied
        self.batches += 1
        self.streams = streams
        self.dropped.update({reason.text: n for reason, n in counts.dropped.items()})
        self.resets.update({reason.text: n for reason, n in counts.resets.items()})
        self.latencies_s.append(seconds)
        self.labelled += counts.labelled
        self.correct += counts.correct

    @property
    def balanced(self) -> bool:
        """Whether received = applied + dropped."""
        return self.received == self.applied + self.dropped.total()

    def as_dict(self, scores: ScoreTotals | None, level: float) -> dict[str, Any]:
        """Return the summary as plain values, without the heads that the model does not have."""
        result: dict[str, Any] = {
            "samples": self.received,
            "applied": self.applied,
            "dropped": dict(sorted(self.dropped.items())),
            "resets": dict(sorted(self.resets.items())),
            "streams": self.streams,
            "seconds": round(self.seconds, 3),
            "samples_per_second": round(self.received / self.seconds) if self.seconds else None,
            "memory_mib": round(resident_mib(), 1),
        }
        if self.latencies_s:
            p50, p90, p99 = np.percentile(self.latencies_s, (50, 90, 99)) * 1e3
            result["batch_ms"] = {"p50": round(p50, 3), "p90": round(p90, 3), "p99": round(p99, 3)}
        if self.labelled:
            result["accuracy"] = round(self.correct / self.labelled, 4)
        if scores is not None and scores.truths.any():
            result["forecast"] = _forecast(scores, level)
        return result


def _forecast(scores: ScoreTotals, level: float) -> dict[str, Any]:
    covered, truths = scores.covered.sum(axis=1), scores.truths.sum(axis=1)
    error = scores.mae()
    return {
        "mae": [
            round(float(row[seen].mean()), 5) if seen.any() else None
            for row, seen in zip(error, scores.truths > 0, strict=True)
        ],
        "skill_against_persistence": [
            round(float(1 - a / b), 4) if b > 0 else None
            for a, b in zip(scores.absolute_error.sum(axis=1), scores.persistence_error.sum(axis=1), strict=True)
        ],
        "coverage": [
            round(float(c / n), 4) if n and np.isfinite(c) else None for c, n in zip(covered, truths, strict=True)
        ],
        "level": level,
        "truths": int(scores.truths.sum()),
    }


def resident_mib() -> float:
    """Return the peak resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def summary_lines(result: dict[str, Any], targets: tuple[str, ...]) -> list[str]:
    """Return the summary as text, one fact per line."""
    lines = [
        f"samples     {result['samples']:,} of {result['streams']} streams in {result['seconds']} s"
        f" ({result['samples_per_second'] or 0:,}/s)",
        f"applied     {result['applied']:,}",
        f"dropped     {_counts(result['dropped'])}",
        f"resets      {_counts(result['resets'])}",
    ]
    if "accuracy" in result:
        lines.append(f"accuracy    {result['accuracy']:.1%} of the labelled rows")
    forecast = result.get("forecast")
    if forecast:
        for index, target in enumerate(targets):
            mae, skill, coverage = (forecast[key][index] for key in ("mae", "skill_against_persistence", "coverage"))
            lines.append(
                f"forecast    {target}: mean absolute error {'unknown' if mae is None else f'{mae:.4g}'},"
                f" skill against persistence"
                f" {'unknown' if skill is None else f'{skill:+.1%}'}, interval coverage"
                f" {'unknown' if coverage is None else f'{coverage:.1%}'} of {forecast['level']:.0%}"
            )
    if "batch_ms" in result:
        times = result["batch_ms"]
        lines.append(f"latency     {times['p50']} / {times['p90']} / {times['p99']} ms a batch (p50 / p90 / p99)")
    lines.append(f"memory      {result['memory_mib']} MiB resident at most")
    return lines


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in counts.items()) or "none"
