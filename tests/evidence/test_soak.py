"""What the soak test counts as growth."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.evidence.soak import Counts, Look, growth, unbalanced


def looks(
    rss_mib: Callable[[float], float] = lambda _: 80.0, threads: int = 5, files: int = 18, late: int = 0
) -> list[Look]:
    """Ten minutes of measurements; ``late`` threads and files more at the end."""
    more = [late if number >= 290 else 0 for number in range(300)]
    return [Look(2.0 * n, rss_mib(2.0 * n), threads + more[n], files + more[n]) for n in range(300)]


def test_a_steady_process_does_not_grow() -> None:
    """Memory that rises and falls, and growth during the warm-up, do not count."""
    assert not growth(looks(lambda second: 80 + second % 7 + (0 if second > 100 else second / 10)))


@pytest.mark.parametrize(
    ("seen", "word"),
    [(looks(lambda second: 80 + second / 60), "memory grew"), (looks(late=1), "threads"), (looks(late=-1), "files")],
)
def test_growth_is_found(seen: list[Look], word: str) -> None:
    """A leak of a MiB a minute, a thread more and a file less are each found."""
    assert any(word in text for text in growth(seen))


def test_what_is_missing_is_found() -> None:
    """Samples received, dropped and applied, and outputs received, must add up."""
    counts = Counts(sent=110, good=100, heard=100)
    assert not unbalanced({"samples": 110, "applied": 100, "dropped": {"parse": 10}}, counts)
    assert unbalanced({"samples": 110, "applied": 99, "dropped": {"parse": 10}}, counts)
    assert unbalanced({"samples": 110, "applied": 99, "dropped": {"parse": 11}}, counts)
    assert unbalanced({"samples": 109, "applied": 100, "dropped": {"parse": 9}}, counts)
