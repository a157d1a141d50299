"""When and where each run of a daemon ends: at a point in turn, or at any moment."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.kill.life import Life
from tests.kill.points import POINTS, SIDES, Point

_KILLED = -9
_RANDOM = "any moment"
_MISSED = "any moment, as the point was not reached"


@dataclass
class Tally:
    """Kills by point, and what went wrong in a run."""

    kills: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    ended: int = 0

    @property
    def total(self) -> int:
        """All kills."""
        return self.kills.total()

    def table(self) -> list[str]:
        """Point -> kills before and after it, a line each."""
        names = dict.fromkeys(name for name, _ in (key.rsplit("/", 1) for key in self.kills if "/" in key))
        lines = [f"  {name:24} {self.kills[f'{name}/before']:5} {self.kills[f'{name}/after']:5}" for name in names]
        lines = ["  point                   before after", *sorted(lines)] if lines else []
        return [*lines, *(f"  {key}: {self.kills[key]}" for key in (_RANDOM, _MISSED) if self.kills[key])]


class KillPlan:
    """Chooses how a run ends; every point and side occurs once before one occurs twice.

    ``share``: of kills at any moment.  ``patience_s``: how long a run may wait for its point.  ``longest_s``: the time
    after the start of the loop, for a kill at any moment.
    """

    def __init__(
        self,
        rng: random.Random,
        points: Sequence[Point],
        *,
        share: float = 0.2,
        patience_s: float = 2.0,
        longest_s: float = 0.5,
        without: str = "",
    ) -> None:
        self._rng, self._share, self._patience_s, self._longest_s = rng, share, patience_s, longest_s
        self._without = without
        self._turn = self._turns(list(points))
        self.tally = Tally()

    def _turns(self, points: list[Point]) -> Iterator[tuple[Point, str]]:
        places = [(point, side) for point in points for side in SIDES]
        while True:
            self._rng.shuffle(places)
            yield from places

    def end_one(self, configure: Callable[[Point | None], Path], log: Path) -> int | None:
        """Start a daemon and kill it; return its exit code when it ended by itself before.

        ``configure`` writes the configuration with which it reaches a point.
        """
        options = ["--without", self._without] if self._without else []
        at_point = self._rng.random() >= self._share
        name, point = _RANDOM, None
        if at_point:
            point, side = next(self._turn)
            nth = self._rng.randint(1, point.calls)
            options += ["--point", point.name, "--side", side, "--nth", str(nth)]
            name = f"{point.name}/{side}"
        life = Life(configure(point), log, *options)
        try:
            code = self._await_point(life) if at_point else self._at_any_moment(life)
            if code is None:
                name, code = (_MISSED if at_point else _RANDOM), life.kill()
            self.tally.problems += life.error_lines()
            if code != _KILLED:
                self.tally.ended += 1
                return code
            self.tally.kills[name] += 1
            return None
        finally:
            life.close()

    def _await_point(self, life: Life) -> int | None:
        life.wait_for("l")
        return life.wait(self._patience_s)

    def _at_any_moment(self, life: Life) -> int | None:
        if self._rng.random() < 0.25:
            life.wait_for("r")
            return life.wait(self._rng.uniform(0.0, 0.03))
        life.wait_for("l")
        return life.wait(self._rng.uniform(0.0, self._longest_s))


def few_streams(rng: random.Random, point: Point | None) -> bool:
    """Return whether streams shall be evicted: by chance, and if a point needs it."""
    return rng.random() < 0.5 or (point is not None and point.evicts)


def points_of(*, mqtt: bool) -> list[Point]:
    """Return the points that a run with or without a broker passes."""
    return [point for point in POINTS.values() if mqtt or not point.mqtt_only]
