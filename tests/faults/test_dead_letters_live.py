"""Dead letters of a real daemon under load: each rejected message is there with its place, or it is counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.brokers import Broker
from tests.support.daemons import Running, mqtt_config, pump_records
from tests.support.requirements import needs_mosquitto
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.servers, needs_mosquitto]

SOURCE = '{source="mqtt"}'


def write_config(folder: Path, broker: Broker, **keys: int) -> Path:
    """A daemon whose records come as lines of JSON, with a dead-letter file of these bounds."""
    text = mqtt_config(broker.url, run='state_dir = "state"\nmax_streams = 2000\n').replace(
        'format = "json"', 'format = "jsonl"'
    )
    lines = ["[dead_letter]", 'path = "dead.jsonl"', *(f"{key} = {value}" for key, value in keys.items())]
    path = folder / "gateway.toml"
    path.write_text(text + "\n" + "\n".join(lines) + "\n")
    return path


def letters(folder: Path) -> list[dict[str, Any]]:
    """The entries of both files."""
    files = [folder / "dead.jsonl.1", folder / "dead.jsonl"]
    return [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]


def dropped(daemon: Running) -> float:
    """Rejected messages, of which each holds one bad record."""
    reasons = ("parse", "missing_field", "unknown_stream", "encoding", "too_large")
    found = [daemon.metric(f'stream_gru_samples_dropped_total{{reason="{one}",source="mqtt"}}') for one in reasons]
    return sum(one or 0 for one in found)


def payloads(number: int, rows: list[dict[str, float]]) -> tuple[bytes, str, int]:
    """A payload of three good lines and a bad one, why it is bad, and the row of the bad one."""
    reason, bad = [("parse", b'{"ts": tru}'), ("missing_field", b'{"ts": 1}'), ("encoding", b"\xff")][number % 3]
    lines = [json.dumps(row).encode() for row in rows]
    row = number % 4
    return b"\n".join([*lines[:row], bad, *lines[row:]]), reason, row + 1


def test_each_rejected_message_of_a_flood_is_a_dead_letter(broker: Broker, tmp_path: Path) -> None:
    """With topic, arrival, reason, and the row and the byte of the bad line; nothing has to be searched."""
    rows = pump_records(1, 3600)["dev-0"]
    sent: dict[str, tuple[bytes, str, int]] = {}
    with Running(write_config(tmp_path, broker)) as daemon, broker.client() as peer:
        daemon.wait_for_sources("mqtt")
        for number in range(1200):
            stream = f"dev-{number % 600}-{number}"
            sent[f"sensors/{stream}/data"] = payloads(number, rows[:3])
        peer.publish_all([(topic, payload) for topic, (payload, _, _) in sent.items()])
        large = b'{"ts": 1, "note": "' + b"x" * 70_000 + b'"}'
        peer.publish("sensors/large/data", large)
        wait_for(lambda: dropped(daemon) == len(sent) + 1, timeout_s=60)
        assert daemon.metric(f"stream_gru_messages_received_total{SOURCE}") == len(sent) + 1
        for reason in ("rate", "size", "error"):
            assert daemon.metric(f'stream_gru_dead_letters_skipped_total{{reason="{reason}"}}') == 0
        text = daemon.stop()
    found = letters(tmp_path)
    assert Counter(letter["topic"] for letter in found) == dict.fromkeys([*sent, "sensors/large/data"], 1)
    for letter in found[:-1]:
        payload, reason, row = sent[letter["topic"]]
        assert (letter["reason"], letter["row"], letter["source"], letter["records"]) == (reason, row, "mqtt", 1)
        assert payload[letter["offset"] :].split(b"\n")[0] == payload.split(b"\n")[row - 1]
        assert letter["time"] >= "2026"
    assert (found[-1]["reason"], found[-1]["payload"]) == ("too_large", large[:4096].decode())
    assert f"dead letters: {len(sent) + 1:,} written to " in text


@pytest.mark.parametrize(("keys", "reason"), [({"max_hz": 5}, "rate"), ({"max_bytes": 65_536}, "size")])
def test_what_is_beyond_the_bounds_is_counted(
    broker: Broker, tmp_path: Path, keys: dict[str, int], reason: str
) -> None:
    """What is in the files and what was counted are together all that were rejected."""
    series = f'stream_gru_dead_letters_skipped_total{{reason="{reason}"}}'
    with Running(write_config(tmp_path, broker, **keys)) as daemon, broker.client() as peer:
        daemon.wait_for_sources("mqtt")
        peer.publish_all([(f"sensors/dev-{number}/data", b"?" * 100) for number in range(1000)])
        wait_for(lambda: dropped(daemon) == 1000, timeout_s=60)
        skipped = 1000 - len(letters(tmp_path))
        assert skipped > 100
        wait_for(lambda: daemon.metric(series) == skipped)
        text = daemon.stop()
    assert f"{skipped:,} not kept ({skipped:,} {reason})" in text
