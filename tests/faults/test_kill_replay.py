"""A daemon that replays a file is killed a hundred times; every kill point names a function of the product."""

from __future__ import annotations

import importlib
from functools import reduce
from pathlib import Path

import pytest

from tests.kill.ablation import run_ablation
from tests.kill.points import POINTS, Point
from tests.kill.replay import run_replay

SEED = 2026


def test_nothing_is_lost_or_doubled_by_a_hundred_kills(tmp_path: Path) -> None:
    """States and files are byte for byte those of a daemon that was not killed."""
    outcome = run_replay(tmp_path, kills=100, seed=SEED)
    assert outcome.tally.total == 100
    assert not outcome.problems, "\n".join(outcome.problems)


def test_files_that_are_not_cut_back_are_detected(tmp_path: Path) -> None:
    """The same comparison finds duplicate rows in a file."""
    outcome = run_ablation(tmp_path, "truncate", kills=6, seed=SEED)
    assert any("rows.jsonl" in text and " 0 too many" not in text for text in outcome.problems)


@pytest.mark.parametrize("point", POINTS.values(), ids=lambda point: point.name)
def test_every_point_names_an_existing_function(point: Point) -> None:
    """A renamed step fails here, instead of a kill that never happens."""
    module, _, path = point.function.partition(":")
    assert callable(reduce(getattr, path.split("."), importlib.import_module(module)))
