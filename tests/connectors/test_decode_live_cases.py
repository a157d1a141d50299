"""Stories of devices: ``tests/cases/decode_live/<format>_<story>/{config.toml, messages.jsonl}`` is read as
``expected.jsonl`` says.

A line of ``messages.jsonl`` is a message: its ``payload`` or its ``hex`` (see `whole`) and what is not as usual (see
`message`).  Each line of ``expected.jsonl`` is a sample; the last one holds the rejects by reason, or why the source is
refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stream_gru.config import parse_config
from stream_gru.connectors.catalog import CATALOG
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.decoders.registry import DECODERS, load_decoder
from stream_gru.connectors.sources.files import ReplaySourceConfig
from stream_gru.core.errors import ConfigError
from stream_gru.core.timestamps import to_ns
from stream_gru.core.types import DropReason, RawMessage
from tests.connectors.test_decode_cases import sample_rows
from tests.support.paths import CASES

LIVE_STORIES = sorted(path.name for path in (CASES / "decode_live").iterdir() if path.is_dir())
FORMATS = sorted(set(DECODERS.built_in) - {"parquet"})


def whole(text: str | list[tuple[str, int]]) -> str:
    """A long text is a list of parts, and how often each stands there."""
    return text if isinstance(text, str) else "".join(part * times for part, times in text)


def message(said: dict[str, Any], number: int) -> RawMessage:
    """A message as a line of ``messages.jsonl`` says it: from ``p1``, a second after the one before it."""
    return RawMessage(
        bytes.fromhex(whole(said["hex"])) if "hex" in said else whole(said["payload"]).encode(),
        said.get("key", "p1"),
        said.get("header", "").encode(),
        to_ns(said.get("arrival", f"2024-05-01T12:00:{number:02}Z")),
        channel=said.get("channel", ""),
        fault=DropReason[said["fault"].upper()] if "fault" in said else None,
        source=said.get("source", "plant"),
    )


def decode_live(folder: Path) -> list[dict[str, object]]:
    """What the story's messages become, in the form of ``expected.jsonl``."""
    config = parse_config((folder / "config.toml").read_text(encoding="utf-8"), "config.toml", CATALOG)
    (source,) = config.source
    assert not isinstance(source, ReplaySourceConfig)
    lines = (folder / "messages.jsonl").read_text(encoding="utf-8").splitlines()
    messages = [message(json.loads(line), number) for number, line in enumerate(lines)]
    try:
        fields = Fields.for_source(config.input, config.channel, source.input, source.channel)
        batch = load_decoder(source.format, fields).decode(messages)
    except ConfigError as error:
        return [{"error": str(error)}]
    assert batch.arrival_ns is not None or not len(batch)
    return [*sample_rows(batch), {"rejected": {reason.text: n for reason, n in sorted(batch.rejected_counts.items())}}]


@pytest.mark.parametrize("story", LIVE_STORIES)
def test_messages_are_read_as_the_story_says(story: str) -> None:
    """Samples and rejects by reason are those of ``expected.jsonl``."""
    lines = (CASES / "decode_live" / story / "expected.jsonl").read_text(encoding="utf-8").splitlines()
    assert decode_live(CASES / "decode_live" / story) == [json.loads(line) for line in lines]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_has_its_stories(kind: str) -> None:
    """A format without stories, or a moved folder of cases, would not pass unseen."""
    mine = [story for story in LIVE_STORIES if max((k for k in FORMATS if story.startswith(f"{k}_")), key=len) == kind]
    assert len(mine) >= 4
