"""Decoding of live messages: ``tests/cases/decode_live/<format>_<case>/{config.toml, messages.jsonl}`` gives
``expected.jsonl``.

A line of ``messages.jsonl`` is a message: its ``payload`` or its ``hex`` (see `whole`) and everything that differs from
the defaults (see `message`).  Each line of ``expected.jsonl`` is a sample; the last one holds the rejects by reason, or
the error of the configuration.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stream_gru.config import parse_config
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.registry import CATALOG, DECODERS, load_decoder
from stream_gru.connectors.sources.files import ReplaySourceConfig
from stream_gru.core.errors import ConfigError
from stream_gru.core.timestamps import to_ns
from stream_gru.core.types import DropReason, RawMessage
from tests.connectors.test_decode_cases import sample_rows
from tests.support.paths import CASES

LIVE_CASES = sorted(path.name for path in (CASES / "decode_live").iterdir() if path.is_dir())
FORMATS = sorted(set(DECODERS.built_in) - {"parquet"})


def expanded(text: str | list[tuple[str, int]]) -> str:
    """A long text is written as a list of parts and their repetitions."""
    return text if isinstance(text, str) else "".join(part * times for part, times in text)


def message_of_line(line: dict[str, Any], number: int) -> RawMessage:
    """The message of a line of ``messages.jsonl``: by default of ``p1``, one second after the previous one."""
    return RawMessage(
        bytes.fromhex(expanded(line["hex"])) if "hex" in line else expanded(line["payload"]).encode(),
        line.get("key", "p1"),
        line.get("header", "").encode(),
        to_ns(line.get("arrival", f"2024-05-01T12:00:{number:02}Z")),
        channel=line.get("channel", ""),
        fault=DropReason[line["fault"].upper()] if "fault" in line else None,
        source=line.get("source", "plant"),
    )


def decode_live(folder: Path) -> list[dict[str, object]]:
    """Decode the messages of a case, in the form of ``expected.jsonl``."""
    config = parse_config((folder / "config.toml").read_text(encoding="utf-8"), "config.toml", CATALOG)
    (source,) = config.source
    assert not isinstance(source, ReplaySourceConfig)
    lines = (folder / "messages.jsonl").read_text(encoding="utf-8").splitlines()
    messages = [message_of_line(json.loads(line), number) for number, line in enumerate(lines)]
    try:
        fields = Fields.for_source(config.input, config.channel, source.input, source.channel)
        batch = load_decoder(source.format, fields).decode(messages)
    except ConfigError as error:
        return [{"error": str(error)}]
    assert batch.arrival_ns is not None or not len(batch)
    return [*sample_rows(batch), {"rejected": {reason.text: n for reason, n in sorted(batch.rejected_counts.items())}}]


@pytest.mark.parametrize("case", LIVE_CASES)
def test_messages_are_decoded_as_expected(case: str) -> None:
    """Samples and rejects by reason are those of ``expected.jsonl``."""
    lines = (CASES / "decode_live" / case / "expected.jsonl").read_text(encoding="utf-8").splitlines()
    assert decode_live(CASES / "decode_live" / case) == [json.loads(line) for line in lines]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_has_its_cases(kind: str) -> None:
    """A format without cases, or a moved folder of cases, fails the test."""
    own = [case for case in LIVE_CASES if max((k for k in FORMATS if case.startswith(f"{k}_")), key=len) == kind]
    assert len(own) >= 4
