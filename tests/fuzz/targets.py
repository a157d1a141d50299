"""What is fuzzed: a row a reader, in `TARGETS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

from stream_gru.connectors.decoders.registry import DECODERS

CORPUS = Path(__file__).parent / "corpus"


class Target(Protocol):
    """A reader and what must hold of it."""

    @property
    def words(self) -> tuple[bytes, ...]:
        """What the format is made of."""
        ...

    def check(self, pieces: list[bytes], variant: int) -> Iterable[str]:
        """Read ``pieces``; return what became of them, in few words.  Raises anything where a property is broken."""
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
