from __future__ import annotations

from pathlib import Path

import pytest

from stream_gru.connectors.credentials import read_secret, require_private
from stream_gru.core.errors import ConfigError


def secret(path: Path, content: bytes = b"hunter2\n", mode: int = 0o600) -> str:
    """A file with a secret."""
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"hunter2", "hunter2"), (b"hunter2\n", "hunter2"), (b"hunter2\r\n", "hunter2"), (b" pa ss ", " pa ss "),
     ("größe".encode(), "größe")],
)  # fmt: skip
def test_one_line_end_is_not_part_of_it(tmp_path: Path, content: bytes, text: str) -> None:
    """Editors add a line end; everything else is part of the secret."""
    assert read_secret(secret(tmp_path / "s", content)) == text


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o660, 0o666, 0o620, 0o777])
def test_a_file_that_is_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    """The message has the file, the mode and the command that fixes it."""
    path = secret(tmp_path / "s", mode=mode)
    with pytest.raises(ConfigError, match=f"got mode {mode:04o}; run: chmod 600 {path}"):
        read_secret(path)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o440, 0o640])
def test_owner_and_reading_group_are_enough(tmp_path: Path, mode: int) -> None:
    """Services share a secret by a group with read permission."""
    assert read_secret(secret(tmp_path / "s", mode=mode)) == "hunter2"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty file"), (b"\n", "empty file"), (b"x" * 4097, "longer file"), (b"a\nb\n", "one line"),
     (b"hunter2\0", "one line"), (b"\xffhunter2", "one line")],
)  # fmt: skip
def test_what_cannot_be_a_secret_is_refused_and_not_shown(tmp_path: Path, content: bytes, words: str) -> None:
    """The message says what was expected and never the content."""
    path = secret(tmp_path / "s", content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_secret(path)
    assert path in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """The message says how to create one."""
    with pytest.raises(ConfigError, match="got none: No such file or directory; create it"):
        read_secret(str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="got none: Is a directory"):
        read_secret(str(tmp_path))


def test_credentials_of_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare name is looked up among them first, and their folder is trusted whatever the modes say."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    secret(folder / "mqtt-password", b"inside\n", mode=0o444)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    assert read_secret("mqtt-password") == "inside"
    assert read_secret(str(folder / "mqtt-password")) == "inside"
    with pytest.raises(ConfigError, match="chmod"):
        read_secret(secret(tmp_path / "s", mode=0o444))
    with pytest.raises(ConfigError, match="chmod"):
        read_secret(str(folder / ".." / "s"))


def test_a_key_that_others_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Private keys are not read here, but the same rules hold."""
    require_private(secret(tmp_path / "key", mode=0o640))
    with pytest.raises(ConfigError, match="got mode 0644; run: chmod 600"):
        require_private(secret(tmp_path / "key", mode=0o644))
    with pytest.raises(ConfigError, match="got none: No such file"):
        require_private(str(tmp_path / "gone"))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    require_private("key")


@pytest.mark.parametrize(("content", "text"), [(b"a\n\n", None), (b"a\n", "a"), (b"\na", None)])
def test_exactly_one_line_end_is_left_out(tmp_path: Path, content: bytes, text: str | None) -> None:
    """A second one is an error, not silently removed."""
    path = secret(tmp_path / "s", content)
    if text is None:
        with pytest.raises(ConfigError, match="expected one line"):
            read_secret(path)
    else:
        assert read_secret(path) == text
