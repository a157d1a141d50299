"""Kill a daemon that replays a file, repeatedly, and compare each time it reaches the end."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

from tests.kill.kills import KillPlan, few_streams, points_of
from tests.kill.life import Life
from tests.kill.messages import Message, field_messages
from tests.kill.mqtt import KillOutcome
from tests.kill.points import Point
from tests.kill.results import Results, differences, read_results
from tests.kill.runs import LOG, Edits, Settings, write_config, write_recording

_STREAMS, _FEW = 50, 20
_MESSAGES_OF_A_KILL = 150


def run_replay(
    folder: Path, kills: int, seed: int, *, points: Sequence[Point] | None = None, without: str = ""
) -> KillOutcome:
    """Kill a daemon this often while it replays; when it reaches the end before, compare and restart."""
    begin, rng = time.monotonic(), random.Random(seed)
    sent = list(field_messages(_MESSAGES_OF_A_KILL * min(kills, 100), _STREAMS, seed))
    reference = undisturbed_replay(folder / "reference", sent)
    plan = KillPlan(rng, points or points_of(mqtt=False), share=0.0 if points else 0.2, longest_s=0.15, without=without)
    problems: list[str] = []
    messages = turn = 0
    while plan.tally.total < kills and not problems:
        turn += 1
        disturbed = folder / f"killed-{turn}"
        problems += _one_recording(disturbed, sent, plan, kills, rng, without)
        problems += plan.tally.problems or differences(reference, read_results(disturbed))
        messages += len(sent)
    return KillOutcome(plan.tally, problems, messages, time.monotonic() - begin)


def undisturbed_replay(folder: Path, sent: Sequence[Message], settings: Settings | None = None) -> Results:
    """Return the results of a daemon that is not killed."""
    folder.mkdir(parents=True)
    write_recording(folder / "messages.jsonl", sent)
    problems = _to_the_end(write_config(folder, settings or Settings()), folder / LOG)
    assert not problems, problems
    return read_results(folder)


def _one_recording(
    folder: Path, sent: Sequence[Message], plan: KillPlan, kills: int, rng: random.Random, without: str
) -> list[str]:
    """Kill until the end of the input, or until there are enough kills; then let it run to the end."""
    folder.mkdir(parents=True)
    write_recording(folder / "messages.jsonl", sent)
    edits = Edits(folder, rng)
    while plan.tally.total < kills:
        code = plan.end_one(lambda point: write_config(folder, edits.apply(_chosen_kill(rng, point))), folder / LOG)
        if code == 0:
            edits.end(Settings())
            return []
        if code is not None:
            return [f"the daemon ended by itself: {code}: {(folder / LOG).read_text()[-2000:]}"]
    return _to_the_end(
        write_config(folder, edits.end(Settings())), folder / LOG, *(["--without", without] if without else [])
    )


def _to_the_end(config: Path, log: Path, *options: str) -> list[str]:
    life = Life(config, log, *options)
    try:
        code = life.wait(120)
        return [
            *([] if code == 0 else [f"expected exit code 0, got {code}: {life.output()[-2000:]}"]),
            *life.error_lines(),
        ]
    finally:
        life.close()


def _chosen_kill(rng: random.Random, point: Point | None) -> Settings:
    """Return small batches and many commits, so that a file lasts; they must not change the results."""
    few = few_streams(rng, point)
    return Settings(
        batch_rows=rng.choice((20, 60, 100)),
        commit_every=rng.choice((20, 100)),
        emit=rng.choice(("after_commit", "immediate")),
        max_streams=_FEW if few else 1000,
        max_streams_policy="evict" if few else "reject",
    )
