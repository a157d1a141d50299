"""The table of the doctor's checks."""

from __future__ import annotations

from collections.abc import Sequence

from stream_gru.core.checks import Check, State


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
