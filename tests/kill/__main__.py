"""Kill a daemon repeatedly and compare with one that was never killed.

    python -m tests.kill mqtt --kills 1000 --messages 100000
    python -m tests.kill replay --kills 1000
    python -m tests.kill ablation --which ack|packets|truncate       the tests that must fail
    python -m tests.kill io --all                                    each call of the system fails once

Exit code 1 on any difference (of an ablation: on none); the folder stays for inspection then.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from tests.kill.ablation import WHICH, run_ablation
from tests.kill.io import KINDS, run_all
from tests.kill.mqtt import KillOutcome, run_mqtt
from tests.kill.replay import run_replay
from tests.kill.runs import versions
from tests.support.paths import ROOT


def main() -> int:
    """Run the campaign of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="campaign", required=True)
    for name in ("mqtt", "replay", "ablation", "io"):
        one = commands.add_parser(name)
        one.add_argument("--seed", type=int, default=2026)
        one.add_argument("--out", type=Path, default=ROOT / "out" / "kill", help="where runs leave their files")
        if name in ("mqtt", "replay"):
            one.add_argument("--kills", type=int, default=100)
        if name == "mqtt":
            one.add_argument("--messages", type=int, help="100 for each kill, where none is given")
        if name == "ablation":
            one.add_argument("--which", choices=WHICH, action="append", help="all, where none is given")
            one.add_argument("--kills", type=int, default=10)
        if name == "io":
            one.add_argument("--kind", choices=KINDS, action="append", help="all, where none is given")
            one.add_argument("--all", action="store_true", help="every call, not a sample of them")
            one.add_argument("--cases", type=int, default=40, help="how many of each kind, without --all")
    given = parser.parse_args()
    folder = given.out.absolute() / f"{given.campaign}-{time.strftime('%Y%m%dT%H%M%S')}"
    print(f"{given.campaign}: seed {given.seed}, {versions()}", flush=True)  # noqa: T201 - a command of its own
    well = _run(given, folder)
    if well:
        shutil.rmtree(folder)
    else:
        print(f"what is left: {folder}")  # noqa: T201
    return 0 if well else 1


def _run(given: argparse.Namespace, folder: Path) -> bool:
    if given.campaign == "mqtt":
        return _report(run_mqtt(folder, given.kills, given.messages or 100 * given.kills, given.seed))
    if given.campaign == "replay":
        return _report(run_replay(folder, given.kills, given.seed))
    if given.campaign == "io":
        return run_all(folder, given.seed, None if given.all else given.cases, given.kind or KINDS)
    results = [_ablate(folder / which, which, given) for which in given.which or WHICH]
    return all(results)


def _ablate(folder: Path, which: str, given: argparse.Namespace) -> bool:
    """Return whether the comparison detects the missing part, and finds no difference without an ablation."""
    whole = _report(run_ablation(folder / "whole", which, given.kills, given.seed, whole=True))
    print(f"without {which}:")  # noqa: T201
    found = not _report(run_ablation(folder / "without", which, given.kills, given.seed))
    print(f"without {which}: {'detected' if found else 'NOT DETECTED'}")  # noqa: T201
    return whole and found


def _report(outcome: KillOutcome) -> bool:
    """Print the result of a campaign; return whether nothing was lost or duplicated."""
    tally = outcome.tally
    print(*tally.table(), sep="\n")  # noqa: T201
    print(*(f"DIFFERENCE: {text}" for text in outcome.problems), sep="\n", end="\n" if outcome.problems else "")  # noqa: T201
    what = f"{len(outcome.problems)} differences" if outcome.problems else "nothing lost, nothing doubled"
    print(  # noqa: T201
        f"{tally.total} kills, {outcome.messages:,} messages, {outcome.seconds:.0f} s: {what}", flush=True
    )
    return not outcome.problems


if __name__ == "__main__":
    sys.exit(main())
