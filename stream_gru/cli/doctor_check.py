"""The result of one check of the doctor, and the table of all results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """``warn``: the daemon runs with limitations; ``fail``: it does not run."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """``name`` is the item checked, ``found`` the finding, ``advice`` the next step, empty if none is needed."""

    name: str
    state: State
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """The fields of the JSON output."""
        return {"name": self.name, "state": str(self.state), "found": self.found, "advice": self.advice}


def check_lines(checks: Sequence[Check]) -> list[str]:
    """The checks as a table with advice below each row, and a line with the totals."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        for number, text in enumerate(check.found.splitlines() or [""]):
            lead = f"{check.state:<4}  {check.name:<{width}}  " if not number else " " * (8 + width)
            lines.append((lead + text).rstrip())
        lines += [f"{'':<{8 + width}}→ {text}" for text in check.advice.splitlines()]
    counts = [sum(check.state is state for check in checks) for state in State]
    return [*lines, "", "{} ok, {} warnings, {} failed".format(*counts)]
