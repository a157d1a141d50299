"""A short campaign of every target, and a campaign that finds a known fault."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.fuzz.campaign import read_failing_case, run_campaign
from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import CORPUS, PARSERS, TARGETS, seeds

_CASES = {"recording": 300, "jsonl": 1000, "line_protocol": 1000, "bundle": 250, "config": 200, "http": 100}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Warnings about rejected input are expected here."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_target_holds_in_some_thousand_cases(name: str, tmp_path: Path) -> None:
    """No error outside the contract is raised, and all results are sound."""
    with TARGETS[name]() as target:
        outcome = run_campaign(target, seeds(name), _CASES.get(name, 2000), 2026, out=tmp_path)
    assert not outcome.failures, outcome.files[0].read_text()
    assert len(outcome.seen) >= 2


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_a_parser_has_seeds(name: str) -> None:
    """At least ten short seeds each: a moved folder fails the test."""
    assert len(seeds(name)) >= 10
    assert max(map(len, seeds(name))) <= 2000


def test_every_folder_of_seeds_has_its_target() -> None:
    """No folder without a target."""
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)


def test_a_case_is_found_again_by_its_numbers() -> None:
    """Independent of the cases before it."""
    with TARGETS["json"]() as target:
        first, second = (Mutator(seeds("json"), target.words) for _ in range(2))
    cases = [first.case(7, number) for number in range(50)]
    assert second.case(7, 31) == cases[31]
    assert second.case(8, 31) != cases[31]


class _Fragile:
    """A reader that fails on nested braces."""

    words = (b"{",)

    def check(self, pieces: list[bytes], variant: int) -> Iterable[str]:
        """Fail."""
        assert not any(b"{{" in piece for piece in pieces), "braces"
        return ["applied"]


def test_a_broken_property_is_found_and_written_down(tmp_path: Path) -> None:
    """Within a few hundred cases; the written case fails again."""
    outcome = run_campaign(_Fragile(), seeds("json"), 500, 1, out=tmp_path)
    assert outcome.failures
    pieces, variant = read_failing_case(outcome.files[0])
    with pytest.raises(AssertionError, match="braces"):
        _Fragile().check(pieces, variant)


def test_a_case_that_takes_too_long_is_a_failure(tmp_path: Path) -> None:
    """The limit is an argument."""
    with TARGETS["json"]() as target:
        outcome = run_campaign(target, seeds("json"), 3, 1, out=tmp_path, longest_s=1e-9)
    assert len(outcome.failures) == 3
    assert "TimeoutError" in outcome.files[0].read_text()
