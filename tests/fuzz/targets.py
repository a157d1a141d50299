"""The fuzzed readers: one row each, in `TARGETS`; entering a row opens what the reader needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from stream_gru.connectors.registry import DECODERS

Framing = Literal["lines", "cobs"]
CORPUS = Path(__file__).parent / "corpus"


class Target(Protocol):
    """A reader and its properties."""

    @property
    def words(self) -> tuple[bytes, ...]:
        """Words of the format."""
        ...

    def check(self, pieces: list[bytes], variant: int) -> Iterable[str]:
        """Read ``pieces`` and return the outcomes in a few words.  Raises any error when a property is broken."""
        ...


Opened = AbstractContextManager[Target]


def _decoder(kind: str) -> Opened:
    from tests.fuzz.target_decoders import DecoderTarget

    return nullcontext(DecoderTarget(kind))


def _framer(framing: Framing) -> Opened:
    from tests.fuzz.target_framers import FramerTarget

    return nullcontext(FramerTarget(framing))


def _topics() -> Opened:
    from tests.fuzz.target_topics import TopicTarget

    return nullcontext(TopicTarget())


def _recording() -> Opened:
    from tests.fuzz.target_recording import RecordingTarget

    return nullcontext(RecordingTarget())


def _bundle() -> Opened:
    from tests.fuzz.target_bundle import BundleTarget

    return BundleTarget()


def _config() -> Opened:
    from tests.fuzz.target_config import ConfigTarget

    return ConfigTarget()


def _http() -> Opened:
    from tests.fuzz.target_http import HttpTarget

    return HttpTarget()


PARSERS: dict[str, Callable[[], Opened]] = {
    **{kind: partial(_decoder, kind) for kind in DECODERS.built_in},
    "framing_lines": partial(_framer, "lines"),
    "framing_cobs": partial(_framer, "cobs"),
    "topics": _topics,
    "recording": _recording,
}
# Readers of files and of connections: slower, and exposed to attackers.
SECURITY: dict[str, Callable[[], Opened]] = {"bundle": _bundle, "config": _config, "http": _http}
TARGETS = {**PARSERS, **SECURITY}


def seeds(name: str) -> list[bytes]:
    """The corpus of a target, in the order of its names."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
