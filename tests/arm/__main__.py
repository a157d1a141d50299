"""Boot an emulated Pi 3 and Pi 4, and test the claims about 64-bit ARM.

Exit code 1 when a claim does not hold.  When QEMU, Debian's arm64 packages or wheels cannot be had, the test names them
and is skipped with exit code 0.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections import deque
from pathlib import Path

from tests.arm.image import Image, Missing, build_image
from tests.arm.machine import PROCESSORS, Machine, emulator_version
from tests.support.paths import ROOT

_CUTS = 3
_BATCHES = (7, 64, 20, 100, 1024)
_SEED = 2026


class Pi:
    """One machine with a disk of its own; prints its claims as they arrive, and counts those that fail."""

    def __init__(self, name: str, image: Image) -> None:
        self.name = f"{name} ({PROCESSORS[name]})"
        self.failed, self.digest = 0, ""
        self._processor, self._image = PROCESSORS[name], image
        self._disk = image.disk.with_name("machine.img")
        shutil.copy(image.disk, self._disk)

    def test(self) -> None:
        """Test all claims: those of one start, then that about power cuts."""
        self._start("claims")
        rng = random.Random(_SEED)
        points = [f"progress {share:.3f}" for share in sorted(rng.uniform(0.05, 0.8) for _ in range(_CUTS))]
        points.insert(1, "recovery")
        for point, batch_rows in zip([*points, ""], _BATCHES, strict=True):
            if not self._start(f"power batch_rows={batch_rows}", point, rng.uniform(0, 0.5)) and point:
                self._claim(f"the run lasts until {point}", False, "it ended before", 0)
                break

    def _start(self, stage: str, point: str = "", after_s: float = 0.0) -> bool:
        """Boot and read the console; cut the power ``after_s`` after ``point``, and return whether it was reached."""
        begin, other = time.monotonic(), deque[str](maxlen=20)
        with Machine(self._processor, self._image, self._disk, stage) as machine:
            for line in machine.lines():
                if point and _is_at(line, point):
                    machine.cut_power(after_s)
                    print(f"      {self.name}: power cut {after_s:.2f} s after {line}", flush=True)  # noqa: T201
                    return True
                if line == "end":
                    machine.wait_until_off()
                    return False
                if line.startswith("claim "):
                    self._claim(**json.loads(line.removeprefix("claim ")))
                else:
                    other.append(line)
        self._claim("the machine runs to its end", False, "\n".join(other), time.monotonic() - begin)
        return False

    def _claim(self, text: str, holds: bool, found: str, seconds: float) -> None:
        self.failed += not holds
        self.digest = found.rpartition("digest ")[2] if holds and "digest " in found else self.digest
        print(f"{'pass' if holds else 'FAIL'}  {self.name}: {text}: {found} ({seconds:.0f} s)", flush=True)  # noqa: T201


def _is_at(line: str, point: str) -> bool:
    """Return whether the line is ``point``, or a progress beyond it."""
    (word, _, share), (kind, _, least) = line.partition(" "), point.partition(" ")
    return word == kind and (not least or float(share) >= float(least))


def main() -> int:
    """Build the image, and test on each machine."""
    parser = argparse.ArgumentParser(prog="python -m tests.arm", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "arm", help="folder of downloads and image")
    parser.add_argument("--only", choices=PROCESSORS, action="append", help="test this machine")
    given = parser.parse_args()
    try:
        image = build_image(given.cache.absolute())
    except Missing as error:
        print(f"skipped: cannot get {error}")  # noqa: T201
        return 0
    print(emulator_version(), flush=True)  # noqa: T201
    pis = []
    for name in given.only or PROCESSORS:
        pis.append(Pi(name, image))
        pis[-1].test()
    failed, digests = sum(one.failed for one in pis), {one.digest for one in pis}
    if len(pis) > 1:
        failed += len(digests) > 1
        print(f"{'pass' if len(digests) == 1 else 'FAIL'}  outputs are the same bytes on all: {digests}")  # noqa: T201
    print(f"{failed} claims failed" if failed else "all claims hold")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
