"""The tests that must fail: the same campaigns with one part of the guarantee removed, and with all parts in place."""

from __future__ import annotations

from pathlib import Path

from tests.kill.messages import plain_messages
from tests.kill.mqtt import KillOutcome, run_counting, run_mqtt
from tests.kill.points import POINTS
from tests.kill.replay import run_replay

WHICH = ("ack", "packets", "truncate")
# A kill between the transaction and the acknowledgement: the broker redelivers what is in the store.
_UNACKNOWLEDGED = ("end", "mark clean", "committed rows", "source commit", "take acknowledgements")
# A kill between the rows and the transaction.
_UNCOMMITTED = ("flush rows", "flush table", "begin", "log")
_STREAMS = 20
_MESSAGES_OF_A_KILL = 60


def run_ablation(folder: Path, which: str, kills: int, seed: int, *, whole: bool = False) -> KillOutcome:
    """Remove a part and kill; ``whole``: remove nothing, so that the comparison must find no difference."""
    without = "" if whole else which
    if which == "ack":
        return run_mqtt(folder, kills, _MESSAGES_OF_A_KILL * kills, seed, without=without)
    if which == "packets":
        points = [POINTS[name] for name in _UNACKNOWLEDGED]
        sent = list(plain_messages(_MESSAGES_OF_A_KILL * kills, _STREAMS, seed))
        return run_counting(folder, kills, sent, seed, points, without=without)
    return run_replay(folder, kills, seed, points=[POINTS[name] for name in _UNCOMMITTED], without=without)
