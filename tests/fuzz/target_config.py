"""`load_config` on changed files: a ConfigError with printable lines, or a configuration that can be shown."""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import tomli_w

from stream_gru.config import load_config
from stream_gru.config.printing import effective
from stream_gru.connectors.registry import CATALOG
from stream_gru.core.errors import ConfigError

_LONGEST_LINE = 2000


class ConfigTarget:
    """A file that is written and read repeatedly."""

    words = (
        b"[", b"]", b"[[", b"]]", b"=", b"{", b"}", b'"""', b"'''", b"#", b"\n[run]\n", b"\n[[source]]\n",
        b"\n[[sink]]\n", b"\n[[broker]]\n", b"\n[[channel]]\n", b"\n[model]\n", b"\n[[model.layer]]\n",
        b'type = "mqtt"',
        b'type = "file"', b"\nrun.x = 1\n", b"a.b.c.d = 1\n", b"0x7fffffffffffffff", b"1979-05-27T07:32:00Z",
        b"07:32:00",
        b"1979-05-27", b"true", b'"mqtt://u:p@h"', b'"127.0.0.1:99999"', b'"a/+/{stream}/#"', b"$HOME", b"${X",
    )  # fmt: skip

    def __enter__(self) -> Self:
        """Make a folder for the file."""
        self._folder = tempfile.TemporaryDirectory()
        self._file = Path(self._folder.name) / "run.toml"
        return self

    def __exit__(self, *_: object) -> None:
        """Delete it."""
        self._folder.cleanup()

    def check(self, pieces: list[bytes], variant: int) -> Iterable[str]:
        """The first piece as a file, or all of them."""
        self._file.write_bytes(b"\n".join(pieces) if variant & 1 else pieces[0])
        try:
            table = effective(load_config(self._file, CATALOG))
        except ConfigError as error:
            _require_readable_problems(error.problems, str(self._file))
            return ["refused"]
        assert tomllib.loads(tomli_w.dumps(table)) == table
        return ["taken"]


def _require_readable_problems(problems: tuple[str, ...], file: str) -> None:
    assert problems
    for problem in problems:
        assert problem.startswith(file), problem
        assert len(problem) < _LONGEST_LINE, len(problem)
        assert problem.isprintable(), problem
