"""What is fuzzed: a row a reader, in `TARGETS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, Self

CORPUS = Path(__file__).parent / "corpus"


class Target(AbstractContextManager["Target"], Protocol):
    """A reader and what must hold of it; entering it opens what it needs."""

    @property
    def words(self) -> tuple[bytes, ...]:
        """What the format is made of."""
        ...

    def check(self, pieces: list[bytes], variant: int) -> Iterable[str]:
        """Read ``pieces``; return what became of them, in few words.  Raises anything where a property is broken."""
        ...

    def __enter__(self) -> Self: ...


def _bundle() -> Target:
    from tests.fuzz_security.target_bundle import BundleTarget

    return BundleTarget()


def _config() -> Target:
    from tests.fuzz_security.target_config import ConfigTarget

    return ConfigTarget()


def _http() -> Target:
    from tests.fuzz_security.target_http import HttpTarget

    return HttpTarget()


TARGETS: dict[str, Callable[[], Target]] = {"bundle": _bundle, "config": _config, "http": _http}


def seeds(name: str) -> list[bytes]:
    """The corpus of a target, in the order of its names."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
