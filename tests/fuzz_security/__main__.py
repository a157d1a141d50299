"""``python -m tests.fuzz_security [--target NAME ...] --cases N --seed S``: fuzz readers, one after the other.

Exit code 1 when a property was broken; failing cases are in ``out/fuzz_security/NAME``, ``--again FILE`` runs one.
"""

from __future__ import annotations

import argparse
import faulthandler
import resource
import sys
import warnings
from pathlib import Path

from tests.fuzz.campaign import read_case, run
from tests.fuzz_security.targets import TARGETS, seeds

_MEMORY = 4 << 30
_LONGEST_S = 15.0


def main() -> int:
    """Run the campaigns that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_security", description=__doc__)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="all, where none is given")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz_security"))
    parser.add_argument("--again", type=Path, help="a failing case that was written down")
    chosen = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("error")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, hard))  # what asks for more fails, in place of all else
    failed = False
    for name in chosen.target or list(TARGETS):
        with TARGETS[name]() as target:
            if chosen.again:
                print(*target.check(*read_case(chosen.again)))  # noqa: T201 - a command of its own
                continue
            outcome = run(
                target,
                seeds(name),
                chosen.cases,
                chosen.seed,
                first=chosen.first,
                out=chosen.out / name,
                longest_s=_LONGEST_S,
            )
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"{name}: seed {chosen.seed}: {outcome}; at most {grown} MiB", flush=True)  # noqa: T201
        for path in outcome.files:
            print(f"  {path}")  # noqa: T201
        failed = failed or bool(outcome.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
