"""Report advisories on the versions that the lock files have for this Python, and how many of them were audited.

Exit code 1: an advisory, or pip-audit failed.  0: none, or skipped, because the advisory service cannot be reached or
knows none of the versions.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

SERVICE = "https://pypi.org/pypi/pip/json"
LOCKS = sorted(Path(__file__).parent.glob("*.txt"))


def verdict(report: dict[str, Any]) -> tuple[str, int]:
    """The text and exit code of a report of pip-audit; it counts a package that the service does not know as sound."""
    packages = report["dependencies"]
    audited = [each for each in packages if "vulns" in each]
    unknown = [each["name"] for each in packages if "vulns" not in each]
    advisories = [
        f"{each['name']} {each['version']}: {vuln['id']}, fixed in {', '.join(vuln['fix_versions']) or 'no version'}"
        for each in audited
        for vuln in each["vulns"]
    ]
    if not audited:
        return f"audit skipped: the advisory service knows none of the {len(packages)} locked versions", 0
    lines = [*advisories, f"audit: {len(audited)} locked versions, {len(advisories)} advisories"]
    if unknown:
        lines.append(f"not audited, unknown to the advisory service: {', '.join(unknown)}")
    return "\n".join(lines), 1 if advisories else 0


def main() -> int:
    """Audit all lock files with pip-audit of this environment."""
    try:
        urllib.request.urlopen(SERVICE, timeout=20).close()
    except (urllib.error.URLError, TimeoutError) as error:
        print(f"audit skipped: {SERVICE} cannot be read: {error}")  # noqa: T201
        return 0
    locks = [argument for path in LOCKS for argument in ("--requirement", str(path))]
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--format", "json", *locks]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if not done.stdout:
        print(done.stderr, file=sys.stderr)  # noqa: T201
        return 1
    text, code = verdict(json.loads(done.stdout))
    print(text)  # noqa: T201
    return code


if __name__ == "__main__":
    sys.exit(main())
