"""The fuzzed readers: one row each, in `TARGETS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

from stream_gru.connectors.decoders.registry import DECODERS

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


def _decoder(kind: str) -> Target:
    from tests.fuzz.target_decoders import DecoderTarget

    return DecoderTarget(kind)


def _lines() -> Target:
    from tests.fuzz.target_framers import FramerTarget

    return FramerTarget("lines")


def _cobs() -> Target:
    from tests.fuzz.target_framers import FramerTarget

    return FramerTarget("cobs")


def _topics() -> Target:
    from tests.fuzz.target_topics import TopicTarget

    return TopicTarget()


def _recording() -> Target:
    from tests.fuzz.target_recording import RecordingTarget

    return RecordingTarget()


TARGETS: dict[str, Callable[[], Target]] = {
    **{kind: partial(_decoder, kind) for kind in DECODERS.built_in},
    "framing_lines": _lines,
    "framing_cobs": _cobs,
    "topics": _topics,
    "recording": _recording,
}


def seeds(name: str) -> list[bytes]:
    """The corpus of a target, in the order of its names."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
