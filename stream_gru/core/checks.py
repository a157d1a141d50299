"""The result of one check of `stream-gru doctor`."""

from __future__ import annotations

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
