"""``python -m tests.fuzz [--target NAME ...] --cases N --seed S``: fuzz the readers one by one.

Exit code 1 when a property was broken; failing cases are in ``out/fuzz/NAME``, ``--again FILE`` runs one of them.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import mmap
import resource
import sys
import tempfile
import warnings
from pathlib import Path

from tests.fuzz.campaign import Outcome, read_failing_case, run_campaign
from tests.fuzz.targets import SECURITY, TARGETS, seeds

_MEMORY = 4 << 30
_LONGEST_S, _LONGEST_SECURITY_S = 5.0, 15.0
_SECURITY_SHARE = 10


def main() -> int:
    """Run the campaigns of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="all, where none is given")
    parser.add_argument("--cases", type=int, default=100_000, help="a tenth of them for bundle, config and http")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"))
    parser.add_argument("--again", type=Path, help="a failing case that was written down")
    chosen = parser.parse_args()
    faulthandler.enable()
    logging.disable(logging.WARNING)
    warnings.simplefilter("error")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, hard))  # a case that needs more fails
    names = chosen.target or list(TARGETS)
    if chosen.again:
        pieces, variant = read_failing_case(chosen.again)
        with TARGETS[names[0]]() as target:
            print(*target.check(pieces, variant))  # noqa: T201 - a command of its own
        return 0
    failed = False
    for name in names:
        cases = chosen.cases // _SECURITY_SHARE if name in SECURITY else chosen.cases
        outcome = _campaign(name, cases, chosen.seed, chosen.first, chosen.out / name)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"{name}: seed {chosen.seed}: {outcome}; at most {grown} MiB", flush=True)  # noqa: T201
        for path in outcome.files:
            print(f"  {path}")  # noqa: T201
        failed = failed or bool(outcome.failures)
    return int(failed)


def _campaign(name: str, cases: int, seed: int, first: int, out: Path) -> Outcome:
    """Run one target.  Its current case is in a file, which remains if the process dies."""
    with tempfile.NamedTemporaryFile(prefix=f"fuzz-{name}-", delete=False) as file:
        file.write(b" " * 20)
        file.flush()
        with mmap.mmap(file.fileno(), 20) as current:

            def begun(number: int) -> None:
                current[:20] = b"%-20d" % number

            longest_s = _LONGEST_SECURITY_S if name in SECURITY else _LONGEST_S
            with TARGETS[name]() as target:
                outcome = run_campaign(
                    target, seeds(name), cases, seed, first=first, out=out, begun=begun, longest_s=longest_s
                )
    Path(file.name).unlink()
    return outcome


if __name__ == "__main__":
    sys.exit(main())
