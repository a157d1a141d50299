"""Secrets in files: passwords and tokens are read here, with a check of the file mode, and are never printed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from stream_gru.core.errors import ConfigError

_MAX_BYTES = 4096
# Systemd gives its credentials mode 0440; any further permission is refused.
_TOO_OPEN = 0o037


def read_secret(path: str) -> str:
    """Return the content of a secret file without its line end.

    ``path`` is a file, or the bare name of a systemd credential.  What lies in ``$CREDENTIALS_DIRECTORY`` is trusted;
    any other file must not be readable by others or writable by its group.

    Raises ConfigError with the file and advice, never with its content.
    """
    found, trusted = _locate(path)
    try:
        with found.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: expected a file with a secret, got none: {error.strerror}; create it with "
            f"(umask 077; cat > {found})"
        ) from error
    if not trusted:
        _check_mode(path, found, mode)
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{path}: expected a secret of at most {_MAX_BYTES} bytes, got a longer file")
    return _text(path, data)


def require_private(path: str) -> None:
    """Refuse a secret file, such as a private key, that others may read; systemd credentials are trusted.

    Raises ConfigError with the file and advice, also when it is not accessible.
    """
    found, trusted = _locate(path)
    try:
        mode = found.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{path}: expected a file with a secret, got none: {error.strerror}") from error
    if not trusted:
        _check_mode(path, found, mode)


def _check_mode(path: str, found: Path, mode: int) -> None:
    if stat.S_ISREG(mode) and mode & _TOO_OPEN:
        raise ConfigError(
            f"{path}: expected a secret for its owner only, got mode {mode & 0o777:04o}; run: chmod 600 {found}"
        )


def _locate(path: str) -> tuple[Path, bool]:
    """The file, and whether it is a systemd credential."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if folder and "/" not in path and (Path(folder) / path).is_file():
        return Path(folder) / path, True
    found = Path(path)
    return found, bool(folder) and found.resolve().is_relative_to(Path(folder).resolve())


def _text(path: str, data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ConfigError(f"{path}: expected a secret, got an empty file")
    if not text.isprintable():
        raise ConfigError(f"{path}: expected one line of UTF-8 text with the secret alone")
    return text
