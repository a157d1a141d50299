"""What one check of the doctor found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """``warn``: it runs, but not as well as it could; ``fail``: it does not run."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """``name`` what was looked at, ``found`` what is there, ``advice`` the next step, where there is one."""

    name: str
    state: State
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """The check as it is written to JSON."""
        return {"name": self.name, "state": str(self.state), "found": self.found, "advice": self.advice}


def check_lines(checks: Sequence[Check]) -> list[str]:
    """The checks as a table, advice below its row, and a line that sums up."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        for number, text in enumerate(check.found.splitlines() or [""]):
            lead = f"{check.state:<4}  {check.name:<{width}}  " if not number else " " * (8 + width)
            lines.append((lead + text).rstrip())
        lines += [f"{'':<{8 + width}}→ {text}" for text in check.advice.splitlines()]
    counts = [sum(check.state is state for check in checks) for state in State]
    return [*lines, "", "{} ok, {} to look at, {} failed".format(*counts)]
