"""States of running daemons: listed, shown, moved to another gateway, reset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stream_gru.core.types import ResetReason
from stream_gru.pipeline.row_schema import RowSchema
from stream_gru.runtime.checkpoint.state_export import build_export, export_from_json, export_to_json
from tests.support.brokers import Broker
from tests.support.cli import run_command
from tests.support.daemons import Running, mqtt_config, pump_records, replayed
from tests.support.network import free_port
from tests.support.requirements import needs_mosquitto
from tests.support.stores import model
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.servers, needs_mosquitto]


def succeeds(*words: str) -> str:
    """Run a command that must succeed; return its output."""
    done = run_command("state", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def gateway(folder: Path, name: str, broker: Broker, run: str = "") -> Iterator[tuple[Running, Path]]:
    """Yield a daemon with its own name, topics and state; ``run``: more lines of [run]."""
    own = folder / name
    own.mkdir()
    (own / "token").write_text("0123456789abcdef-token\n")
    (own / "token").chmod(0o600)
    text = mqtt_config(broker.url, run=f'state_dir = "state"\n{run}\n[control]\ntoken_file = "token"')
    text = text.replace('"gateway"', f'"{name}"').replace("sensors/", f"{name}/").replace(':0"', f':{free_port()}"')
    config = own / "gateway.toml"
    config.write_text(text + '[[sink]]\ntype = "file"\npath = "out.jsonl"\n')
    with Running(config) as daemon:
        daemon.wait_for_sources("mqtt")
        yield daemon, config
        daemon.stop()


def output_rows(config: Path) -> list[bytes]:
    """Return what a gateway has written so far."""
    path = config.with_name("out.jsonl")
    return path.read_bytes().splitlines() if path.exists() else []


def test_a_stream_moves_to_another_gateway_as_if_it_had_stayed(tmp_path: Path) -> None:
    """Half of a stream at one daemon, exported while it runs, imported by another one: the rows of one replay."""
    (records,) = pump_records(1, 300).values()
    expected = replayed({"dev-0": records}, tmp_path)
    with Broker(tmp_path) as broker, broker.client("device") as device:
        with gateway(tmp_path, "here", broker) as (_, here), gateway(tmp_path, "there", broker) as (daemon, there):
            device.publish("here/dev-0/data", *(json.dumps(row) for row in records[:150]))
            wait_for(lambda: len(output_rows(here)) == 150, what="the first half")
            assert [row["stream"] for row in json.loads(succeeds("list", str(here), "--json"))] == ["dev-0"]
            assert json.loads(succeeds("show", str(here), "--stream", "dev-0", "--json"))["steps_since_reset"] == 150
            succeeds("export", str(here), "--stream", "dev-0", "--out", str(tmp_path / "moved.json"))
            assert (tmp_path / "moved.json").stat().st_mode & 0o777 == 0o600
            succeeds("import", str(there), str(tmp_path / "moved.json"))
            device.publish("there/dev-0/data", *(json.dumps(row) for row in records[150:]))
            wait_for(lambda: len(output_rows(there)) == 150, what="the second half")
            assert daemon.metric('stream_gru_commands_total{action="import",result="ok"}') == 1
        assert sorted(output_rows(here) + output_rows(there)) == expected


def test_an_import_is_durable_when_the_command_ends(tmp_path: Path) -> None:
    """A daemon that is killed right after the import has the stream at its next start."""
    (records,) = pump_records(1, 50).values()
    with Broker(tmp_path) as broker, broker.client("device") as device:
        with gateway(tmp_path, "here", broker) as (_, here):
            device.publish("here/dev-0/data", *(json.dumps(row) for row in records))
            wait_for(lambda: len(output_rows(here)) == 50, what="all rows")
        moved = succeeds("export", str(here), "--all")
        with gateway(tmp_path, "there", broker) as (daemon, there):
            (tmp_path / "moved.json").write_text(moved)
            succeeds("import", str(there), str(tmp_path / "moved.json"))
            daemon.process.kill()
            daemon.process.wait()
            assert succeeds("export", str(there), "--all") == moved
            again = Running(there)
            with again:
                again.stop()
            daemon._process = again._process


def test_evicted_streams_are_listed_exported_and_reset(tmp_path: Path) -> None:
    """By a running daemon; deleted ones are gone."""
    (records,) = pump_records(1, 5).values()
    evict = 'max_streams = 1\nmax_streams_policy = "evict"\ncommit_interval_s = 0.05'
    with (
        Broker(tmp_path) as broker,
        broker.client("device") as device,
        gateway(tmp_path, "here", broker, evict) as (daemon, here),
    ):
        lines = [json.dumps(row) for row in records]
        device.publish("here/dev-0/data", *lines)
        wait_for(lambda: len(output_rows(here)) == 5, what="all rows of the first")
        device.publish("here/dev-1/data", *lines)
        wait_for(lambda: len(output_rows(here)) == 10, what="all rows of the second")
        wait_for(lambda: daemon.metric("stream_gru_streams_evicted_total") == 1, what="that one made room")
        listed = {row["stream"]: row["steps"] for row in json.loads(succeeds("list", str(here), "--json"))}
        assert listed == {"dev-0": None, "dev-1": 5}
        build_export = succeeds("export", str(here), "--all").splitlines()
        assert [json.loads(line)["stream"] for line in build_export] == ["dev-0", "dev-1"]
        assert "all streams: reset before the next sample" in succeeds("reset", str(here), "--all")
        assert succeeds("forget", str(here), "--stream", "dev-0") == "stream dev-0: forgotten\n"
        assert [row["stream"] for row in json.loads(succeeds("list", str(here), "--json"))] == ["dev-1"]


def test_an_existing_stream_is_replaced_only_on_request(tmp_path: Path) -> None:
    """Import reports that it exists, on a running and on a stopped daemon."""
    (records,) = pump_records(1, 20).values()
    with Broker(tmp_path) as broker, broker.client("device") as device:
        with gateway(tmp_path, "here", broker) as (_, here):
            device.publish("here/dev-0/data", *(json.dumps(row) for row in records))
            wait_for(lambda: len(output_rows(here)) == 20, what="all rows")
            (tmp_path / "moved.json").write_text(succeeds("export", str(here), "--all"))
            for words in (["import", str(here), str(tmp_path / "moved.json")],):
                assert "exists already" in run_command("state", *words).stderr
                assert run_command("state", *words).returncode == 1
            moved = export_from_json((tmp_path / "moved.json").read_bytes().strip())
            components = {**moved.components, "clock:x": b""}
            more = build_export("dev-0", RowSchema.read(moved.row_schema), moved.row, components)
            (tmp_path / "more.json").write_bytes(export_to_json(more))
            replaced = run_command("state", "import", str(here), str(tmp_path / "more.json"), "--replace")
            assert (replaced.returncode, replaced.stderr.splitlines()) == (
                0,
                ["stream dev-0: imported; skipped components that do not exist here: clock:x", "1 streams imported"],
            )
            other = model()
            other.reset_damaged("dev-1", ResetReason.COMMAND)
            row = other.table.row("dev-1")
            (tmp_path / "other.json").write_bytes(export_to_json(build_export("dev-1", other.row_schema, row, {})))
            refused = run_command("state", "import", str(here), str(tmp_path / "other.json"))
            assert refused.returncode == 1
            assert "stream dev-1: expected a state of model" in refused.stderr
            assert "0 of 1 streams were imported before" in refused.stderr
            succeeds("reset", str(here), "--stream", "dev-0")
            facts = json.loads(succeeds("show", str(here), "--stream", "dev-0", "--json"))
            assert facts["reset_before_next"] == "command"
            assert "the daemon is running" in run_command("state", "reset", str(here), "--source", "mqtt").stderr
        assert run_command("state", "import", str(here), str(tmp_path / "moved.json")).returncode == 1
        assert run_command("state", "show", str(here), "--stream", "unknown").returncode == 1
