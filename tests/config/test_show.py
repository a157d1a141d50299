from __future__ import annotations

import json
import tomllib
from pathlib import Path

import msgspec
import pytest
import tomli_w
from click.testing import CliRunner

from stream_gru.cli.group import cli
from stream_gru.config import Config, effective, parse_config, sample_config
from stream_gru.config.run_schema import BrokerConfig, RunConfig
from stream_gru.connectors.registry import CATALOG
from stream_gru.connectors.sinks.file import FileSinkConfig
from stream_gru.connectors.sinks.influx import InfluxSinkConfig
from stream_gru.connectors.sources.serial import SerialSourceConfig


@pytest.mark.parametrize("purpose", ["train", "run"])
def test_the_shown_configuration_equals_the_file(purpose: str) -> None:
    """Read again it is the same configuration, with every key written out."""
    config = parse_config(sample_config(purpose, CATALOG), "sample.toml", CATALOG)  # type: ignore[arg-type]
    shown = tomli_w.dumps(effective(config))
    assert parse_config(shown, "shown.toml", CATALOG) == config
    assert "commit_every = 10000" in shown or purpose == "train"


def test_every_key_is_shown_with_its_default() -> None:
    """No key of an existing table is missing, except keys without a value."""
    table = effective(Config(run=RunConfig(bundle="b"), broker=[BrokerConfig(url="mqtt://h")]))
    assert isinstance(table["run"], dict)
    assert set(table["run"]) == set(RunConfig.__struct_fields__)
    assert "data" not in table
    assert tomllib.loads(tomli_w.dumps(table)) == table


@pytest.mark.parametrize(
    "text", ["", '"', "\\", "a\nb\t\x00\x1b\x7f\x85\u2028", "'''", "größe 😀", "[x]\n# y = 1", "$HOME"]
)
def test_any_text_is_written_so_that_it_is_read_again(text: str) -> None:
    """Quotes, line ends, control characters and text that looks like TOML."""
    table = effective(Config(run=RunConfig(bundle=text), sink=[FileSinkConfig(path="x" + text)]))
    assert tomllib.loads(tomli_w.dumps(table)) == table


def test_no_secret_is_shown() -> None:
    """Passwords in an address are left out; names of files with secrets are shown."""
    config = Config(
        broker=[BrokerConfig(url="mqtt://h", password_file="/run/hunter.file", user="me")],  # noqa: S106
        source=[SerialSourceConfig(port="socket://me:hunter2@host:1", format="json")],
        sink=[
            InfluxSinkConfig(url="http://h/write?db=plant&u=me&p=hunter2&precision=ns#hunter2", token_file="t"),  # noqa: S106
        ],
    )
    for text in (tomli_w.dumps(effective(config)), json.dumps(effective(config), ensure_ascii=False)):
        assert "hunter2" not in text.replace("#hunter2", "")
        assert "socket://…@host:1" in text
        assert "http://h/write?db=plant&u=…&p=…&precision=ns" in text
        assert "/run/hunter.file" in text


@pytest.mark.parametrize("key", ["password", "token", "client_secret", "api_key"])
def test_a_key_that_would_be_a_secret_is_hidden(key: str) -> None:
    """A future key for a secret is hidden; the key of a file that holds one is not."""
    kind = msgspec.defstruct("kind", [(key, str), (f"{key}_file", str)])
    table = effective(kind("hunter2", "path"))  # type: ignore[arg-type]
    assert table == {key: "…", f"{key}_file": "path"}


@pytest.mark.parametrize("form", ["toml", "json"])
def test_the_command_shows_a_file(tmp_path: Path, form: str) -> None:
    """With defaults and resolved paths; the errors of an invalid file are those of ``check``."""
    file = tmp_path / "run.toml"
    file.write_text(sample_config("run", CATALOG))
    done = CliRunner().invoke(cli, ["config", "show", str(file), *(["--json"] if form == "json" else [])])
    assert done.exit_code == 0
    read = json.loads(done.stdout) if form == "json" else tomllib.loads(done.stdout)
    assert read["run"]["bundle"].startswith(str(tmp_path))
    assert read["metrics"]["listen"] == "127.0.0.1:9723"
