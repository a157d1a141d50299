"""Build the disk of an emulated Pi: Debian's arm64 kernel, Python and Mosquitto, aarch64 wheels, and this repository.

Packages and wheels are downloaded once, into a cache folder; delete the folder to get newer ones.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

PACKAGES = ("linux-image-cloud-arm64", "python3", "mosquitto", "busybox-static", "libstdc++6")  # the last for wheels
TOOLS = {"qemu-system-aarch64": "qemu-system-arm", "mke2fs": "e2fsprogs", "cpio": "cpio"}  # program -> package
TOOLS |= {"apt-get": "apt", "dpkg-deb": "dpkg"}
_DISK_SIZE = "1500M"
_NEWEST_GLIBC = 36  # of Debian 12; wheels for a newer one are not chosen
_MODULES = ("virtio_ring", "virtio", "virtio_mmio", "virtio_blk")  # in the order of loading
_FIRST_INIT = f"""#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for name in {" ".join(_MODULES)}; do /bin/busybox insmod /$name.ko; done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /bin/busybox sh /init
"""
_INIT = """busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t tmpfs run /run
busybox ip link set lo up
cd /repo
HOME=/root PYTHONPATH=/site:/repo python3 -m tests.arm.guest $stage $batch_rows
busybox poweroff -f
"""


class Missing(Exception):
    """Something the emulated machines need, which cannot be had here."""


@dataclass(frozen=True)
class Image:
    """Files that QEMU boots; the disk is copied for each machine."""

    kernel: Path
    initrd: Path
    disk: Path


def tool(name: str) -> str:
    """Path of a program of the host.  Raises Missing."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise Missing(f"the program {name} (Debian package {TOOLS[name]})")
    return found


def build_image(cache: Path) -> Image:
    """Download what ``cache`` lacks, and write the disk with the code as it is now.  Raises Missing."""
    for name in TOOLS:
        tool(name)
    cache.mkdir(parents=True, exist_ok=True)
    root = cache / "root"
    if not _is(root / "packages.txt", PACKAGES):
        _extract(_download(cache / "apt"), root)
    _install_wheels(root)
    shutil.rmtree(root / "repo", ignore_errors=True)
    (root / "repo").mkdir()
    for name in ("stream_gru", "sample_data", "tests"):
        shutil.copytree(ROOT / name, root / "repo" / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root / "repo")
    (root / "init").write_text(_INIT)
    (root / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    disk = cache / "disk.img"
    disk.unlink(missing_ok=True)
    _run(tool("mke2fs"), "-q", "-t", "ext4", "-d", root, disk, _DISK_SIZE)
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    return Image(kernel, _initrd(cache, root), disk)


def _download(folder: Path) -> list[Path]:
    """Download the packages and all they depend on, from the archives this machine uses.  Raises Missing."""
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()  # nothing is installed, so apt-get downloads every dependency
    apt: list[object] = [tool("apt-get"), "-q", "-y"]
    for option in ("APT::Architecture=arm64", "APT::Architectures=arm64", "APT::Sandbox::User=root"):
        apt += ["-o", option]
    for option in (f"Dir::State={folder}", f"Dir::State::status={folder / 'status'}", f"Dir::Cache={folder}"):
        apt += ["-o", option]
    wanted = f"the Debian arm64 packages {', '.join(PACKAGES)}"
    _need(wanted, *apt, "update")
    _need(wanted, *apt, "install", "--download-only", "--no-install-recommends", *PACKAGES)
    return sorted((folder / "archives").glob("*.deb"))


def _extract(packages: Sequence[Path], root: Path) -> None:
    part = root.with_name("root.part")
    shutil.rmtree(part, ignore_errors=True)
    for name in ("dev", "proc", "sys", "run", "root", "tmp", "site", "etc"):
        (part / name).mkdir(parents=True)
    for package in packages:
        _run(tool("dpkg-deb"), "-x", package, part)
    (part / "bin" / "sh").symlink_to("busybox")
    (part / "packages.txt").write_text("\n".join(PACKAGES))
    shutil.rmtree(root, ignore_errors=True)
    part.rename(root)


def _install_wheels(root: Path) -> None:
    """Unpack the wheels that the product and its tests need, for the Python of the image.  Raises Missing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tests = [one for one in project["optional-dependencies"]["dev"] if one.startswith(("pytest>", "hypothesis>"))]
    needed = [*project["dependencies"], *tests]
    site, record = root / "site", root / "site" / "needed.txt"
    if _is(record, needed):
        return
    shutil.rmtree(site, ignore_errors=True)
    python = (root / "usr" / "bin" / "python3").readlink().name.removeprefix("python")
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, _NEWEST_GLIBC + 1)]
    _need(
        f"aarch64 wheels for Python {python}",
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", site),
        *("--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms),
        "--platform=manylinux2014_aarch64",
        *needed,
    )
    record.write_text("\n".join(needed))


def _initrd(cache: Path, root: Path) -> Path:
    """An archive with busybox and the modules of the virtual disk, which Debian's kernel does not contain."""
    folder = cache / "initrd"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("bin", "dev", "root"):
        (folder / name).mkdir(parents=True)
    shutil.copy(root / "bin" / "busybox", folder / "bin")
    for module in _MODULES:
        (found,) = (root / "lib" / "modules").rglob(f"{module}.ko")
        shutil.copy(found, folder)
    (folder / "init").write_text(_FIRST_INIT)
    (folder / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(folder)) for path in sorted(folder.rglob("*")))
    path, command = cache / "initrd.cpio", [tool("cpio"), "--quiet", "-o", "-H", "newc"]
    with path.open("wb") as file:
        subprocess.run(command, input=names.encode(), stdout=file, check=True, cwd=folder)
    return path


def _is(record: Path, lines: Sequence[str]) -> bool:
    return record.exists() and record.read_text().splitlines() == list(lines)


def _need(what: str, *command: object) -> None:
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Missing(f"{what}: {(done.stderr.splitlines() or ['no reason given'])[-1]}")


def _run(*command: object) -> None:
    subprocess.run([str(one) for one in command], check=True, stdout=subprocess.DEVNULL)
