"""A campaign: a number of cases of a target, and their outcome."""

from __future__ import annotations

import base64
import json
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import Target

_MOST_FAILURES = 10


@dataclass
class Outcome:
    """The result of a campaign: ``seen`` counts cases by outcome, ``failures`` are numbers of cases."""

    cases: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    slowest: int = -1
    seen: Counter[str] = field(default_factory=Counter)
    failures: list[int] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        seen = ", ".join(f"{name} {n:,}" for name, n in sorted(self.seen.items()))
        return (
            f"{self.cases:,} cases in {self.seconds:.1f} s ({self.cases / max(self.seconds, 1e-9):,.0f}/s), slowest"
            f" {self.slowest_s * 1000:.0f} ms (case {self.slowest}), {len(self.failures)} failures; {seen}"
        )


def run_campaign(
    target: Target,
    seeds: list[bytes],
    cases: int,
    seed: int,
    *,
    first: int = 0,
    out: Path | None = None,
    begun: Callable[[int], None] | None = None,
    longest_s: float = 0.0,
) -> Outcome:
    """Run cases ``first`` to ``first + cases``; failing ones are written into ``out``, with the error.

    ``begun`` is called with each case before it runs, so that the case is known if the process dies; a case that takes
    more than ``longest_s`` (0: any time) is a failure.
    """
    mutator, outcome = Mutator(seeds, target.words), Outcome()
    begin = last = time.perf_counter()
    for number in range(first, first + cases):
        pieces, variant = mutator.case(seed, number)
        if begun is not None:
            begun(number)
        before = time.perf_counter()
        try:
            outcome.seen.update(target.check(pieces, variant))
            last = time.perf_counter()
            if longest_s and last - before > longest_s:
                raise TimeoutError(f"took {last - before:.2f} s")
        except Exception:
            last = time.perf_counter()
            outcome.failures.append(number)
            if out is not None:
                outcome.files.append(write_failing_case(out, seed, number, pieces, variant, traceback.format_exc()))
            if len(outcome.failures) >= _MOST_FAILURES:
                outcome.cases = number + 1 - first
                break
        if last - before > outcome.slowest_s:
            outcome.slowest_s, outcome.slowest = last - before, number
        outcome.cases = number + 1 - first
    outcome.seconds = last - begin
    return outcome


def write_failing_case(folder: Path, seed: int, number: int, pieces: list[bytes], variant: int, why: str) -> Path:
    """Write a failing case to a file for `read_case`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"case-{seed}-{number}.json"
    shown = {
        "pieces": [base64.b64encode(piece).decode() for piece in pieces],
        "shown": [repr(piece[:200]) for piece in pieces],
        "variant": variant,
        "error": why,
    }
    path.write_text(json.dumps(shown, indent=1) + "\n")
    return path


def read_failing_case(path: Path) -> tuple[list[bytes], int]:
    """Read pieces and variant of a failing case."""
    read = json.loads(path.read_text())
    return [base64.b64decode(piece) for piece in read["pieces"]], read["variant"]
