"""An emulated Raspberry Pi: a 64-bit ARM machine whose processor and kernel QEMU runs."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.arm.image import Image, tool

# Not `max`: XNNPACK does not know it and chooses other kernels than on any real processor.
PROCESSORS = {"Pi 3": "cortex-a53", "Pi 4": "cortex-a72"}
LIMIT_S = 3600.0
_MACHINE = ("-M", "virt", "-smp", "2", "-m", "1024", "-nographic", "-monitor", "none", "-no-reboot")
_KERNEL = "console=ttyAMA0 quiet loglevel=1 panic=-1"


class Machine:
    """Boots ``disk``, which it changes, and runs one stage of `tests.arm.guest`; `lines` is its console."""

    def __init__(self, processor: str, image: Image, disk: Path, stage: str) -> None:
        command = [tool("qemu-system-aarch64"), *_MACHINE, "-cpu", processor]
        command += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", f"{_KERNEL} stage={stage}"]
        command += ["-drive", f"file={disk},format=raw,if=none,id=disk", "-device", "virtio-blk-device,drive=disk"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._limit = threading.Timer(LIMIT_S, self._process.kill)

    def __enter__(self) -> Self:
        self._limit.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._limit.cancel()
        self.cut_power()

    def lines(self) -> Iterator[str]:
        """Lines of its console, until it is off."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield line.decode(errors="replace").rstrip()

    def wait_until_off(self) -> None:
        """Wait until the guest has written its disk and ended."""
        self._process.wait(60)

    def cut_power(self, after_s: float = 0.0) -> None:
        """Kill the emulator: what the guest's kernel has not written to its disk is lost."""
        try:
            self._process.wait(after_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def emulator_version() -> str:
    """The first line of the version of QEMU."""
    command = [tool("qemu-system-aarch64"), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
