"""A daemon between two topics of a real broker is killed a hundred times."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kill.ablation import run_ablation
from tests.kill.mqtt import run_mqtt
from tests.support.requirements import needs_mosquitto

pytestmark = [pytest.mark.servers, needs_mosquitto]
SEED = 2026


def test_nothing_is_lost_or_doubled_by_a_hundred_kills(tmp_path: Path) -> None:
    """States, files and published outputs are byte for byte those of a daemon that was not killed."""
    outcome = run_mqtt(tmp_path, kills=100, messages=10_000, seed=SEED)
    assert outcome.tally.total == 100
    assert not outcome.problems, "\n".join(outcome.problems)


def test_acknowledging_on_arrival_is_detected(tmp_path: Path) -> None:
    """The same comparison finds losses if messages are acknowledged before they are stored."""
    assert run_ablation(tmp_path, "ack", kills=6, seed=SEED).problems


def test_samples_without_a_time_are_applied_once(tmp_path: Path) -> None:
    """Kills between transaction and acknowledgement double nothing, because processed packets are recognised."""
    assert not run_ablation(tmp_path, "packets", kills=10, seed=SEED, whole=True).problems


def test_forgetting_packets_is_detected(tmp_path: Path) -> None:
    """The same comparison finds samples applied twice if processed packets are forgotten at a start."""
    assert run_ablation(tmp_path, "packets", kills=6, seed=SEED).problems
