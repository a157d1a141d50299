"""``stream-gru state`` on a stopped daemon: messages, exit codes and the content of the store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stream_gru.core.types import Position, ResetReason
from stream_gru.model.bundle import load_bundle, write_bundle
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.pipeline.state_table import split_row
from stream_gru.runtime.checkpoint.commit import Commit
from stream_gru.runtime.checkpoint.state_export import build_export, export_from_store, export_to_json
from tests.runtime.test_checkpointer import notes
from tests.support.batches import CHANNELS, batch
from tests.support.cli import Run
from tests.support.models import make_bundle
from tests.support.network import free_port
from tests.support.pipelines import calibrated
from tests.support.stores import change_store, checkpointer_of, feed, model, opened, store_content


def store_config(folder: Path, more: str = "[metrics]\nenabled = false\n", state_dir: str = "state") -> Path:
    """A daemon with a toy model and a store in its own folder."""
    bundle = calibrated(make_bundle(channels=CHANNELS, labels=2, warm_up=2, units=(8,), targets=1))
    folder.mkdir(exist_ok=True)
    write_bundle(folder / "model.bundle", bundle.manifest, dict(bundle.weights), {})
    config = folder / "gateway.toml"
    config.write_text(f'[run]\nbundle = "model.bundle"\nstate_dir = "{state_dir}"\n{more}')
    return config


def pipeline_of(config: Path) -> Pipeline:
    """A fresh pipeline of the daemon's model."""
    return Pipeline(load_bundle(config.with_name("model.bundle")), "numpy")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The configuration of a stopped daemon with the streams a, b and c, of which a part stores notes."""
    config = store_config(tmp_path / "here")
    checkpointer = checkpointer_of(
        tmp_path / "here" / "state", pipeline_of(config), parts={"p": notes(a="of a", b="of b")}
    )
    for count, name in enumerate("cba", 1):
        feed(checkpointer, name, *range(1, count + 1))
    checkpointer.commit({}, {})
    checkpointer.mark_clean_shutdown()
    checkpointer.close()
    return config


def commits(config: Path) -> int:
    """The number of commits of a cleanly closed store."""
    with opened(config.parent / "state") as store:
        assert store.clean_shutdown
        return store.commit_no


def damage(config: Path, table: str, name: str) -> None:
    """Damage the checksum of a stored row."""
    column = "name" if table == "stream" else "key"
    change_store(config.parent / "state", f"UPDATE {table} SET crc=crc+1 WHERE {column}=?", name)  # noqa: S608 - of the tests


@contextmanager
def unchanged(config: Path) -> Iterator[None]:
    """Assert that the store does not change meanwhile."""
    before = store_content(config.parent / "state")
    yield
    assert store_content(config.parent / "state") == before


# ---- list, show


def test_streams_are_listed_by_name(site: Path, run: Run) -> None:
    """With the time of the last sample and the steps since the reset; nothing is written."""
    with unchanged(site):
        code, out, err = run("state", "list", site, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == [
        {
            "stream": name,
            "time": f"2026-03-01T00:00:0{steps}Z",
            "steps": steps,
            "status": "stored",
            "dropped": 0,
            "last_drop": "",
        }
        for name, steps in (("a", 3), ("b", 2), ("c", 1))
    ]
    lines = run("state", "list", site)[1].splitlines()
    assert [line.split() for line in lines] == [
        ["stream", "last", "sample", "steps", "status"],
        ["a", "2026-03-01T00:00:03Z", "3", "stored"],
        ["b", "2026-03-01T00:00:02Z", "2", "stored"],
        ["c", "2026-03-01T00:00:01Z", "1", "stored"],
    ]


def test_damaged_streams_are_listed(site: Path, run: Run) -> None:
    """Their status is damaged; the others are listed as before."""
    damage(site, "stream", "b")
    code, out, _ = run("state", "list", site)
    assert code == 0
    assert [line.split()[-1] for line in out.splitlines()] == ["status", "stored", "damaged", "stored"]
    assert out.splitlines()[2].split() == ["b", "-", "-", "damaged"]


def test_a_store_without_streams_is_an_empty_list(site: Path, run: Run) -> None:
    """An empty store is not a failure."""
    for name in "abc":
        assert run("state", "forget", site, "--stream", name) == (0, f"stream {name}: forgotten\n", "")
    assert run("state", "list", site, "--json") == (0, "[]\n", "")
    assert len(run("state", "list", site)[1].splitlines()) == 1


def test_a_stream_is_shown(site: Path, run: Run) -> None:
    """As JSON, and as one line per fact."""
    code, out, _ = run("state", "show", site, "--stream", "a", "--json")
    facts = json.loads(out)
    assert (code, facts["stream"], facts["steps_since_reset"], facts["components"]) == (0, "a", 3, ["p"])
    lines = run("state", "show", site, "--stream", "a")[1].splitlines()
    assert [line.split()[0] for line in lines] == list(facts)
    assert next(line for line in lines if line.startswith("hidden")).split(maxsplit=1)[1].startswith("size 8, finite")


@pytest.mark.parametrize("words", ["show --stream x", "export --stream x", "reset --stream x", "forget --stream x"])
def test_an_unknown_stream_is_an_error_that_changes_nothing(site: Path, run: Run, words: str) -> None:
    """The message names the store and how to list its streams."""
    command, *options = words.split()
    with unchanged(site):
        code, out, err = run("state", command, site, *options)
    assert (code, out) == (1, "")
    assert err == (
        f"stream-gru: {site.parent}/state/state.db: unknown stream 'x'; list the streams with `stream-gru state list`\n"
    )
    assert commits(site) == 1


# ---- export, import


def test_exported_streams_can_be_imported_elsewhere(site: Path, run: Run, tmp_path: Path) -> None:
    """All streams with the states of all parts, in one transaction, into a new store."""
    there = store_config(tmp_path / "there")
    code, out, err = run("state", "export", site, "--all", "--out", tmp_path / "all.json")
    assert (code, out, err) == (0, "", f"{tmp_path}/all.json: 3 streams exported\n")
    assert (tmp_path / "all.json").stat().st_mode & 0o777 == 0o600
    assert run("state", "import", there, tmp_path / "all.json") == (0, "", "3 streams imported\n")
    assert commits(there) == 1
    with opened(site.parent / "state") as here, opened(there.parent / "state") as elsewhere:
        found, expected = ([export_from_store(store, name) for name in "abc"] for store in (elsewhere, here))
        assert found == expected
    assert run("state", "export", there, "--all")[1] == (tmp_path / "all.json").read_text()
    assert run("state", "export", there, "--stream", "b")[1] == (tmp_path / "all.json").read_text().splitlines(True)[1]


def test_an_import_replaces_all_or_nothing(site: Path, run: Run, tmp_path: Path) -> None:
    """Without --replace an existing stream stops the import; with it, the states of all parts are replaced too."""
    pipeline = pipeline_of(site)
    pipeline.process(batch(["c"], [7]))
    states = [build_export(name, pipeline.row_schema, pipeline.table.row("c"), {}) for name in ("new", "a", "b")]
    (tmp_path / "states").write_bytes(b"\n\n".join(map(export_to_json, states)))
    with unchanged(site):
        code, _, err = run("state", "import", site, tmp_path / "states")
    assert code == 1
    assert err == "stream-gru: stream a (and 1 more): exists already; replace it with --replace\n"
    assert run("state", "import", site, tmp_path / "states", "--replace") == (0, "", "3 streams imported\n")
    assert commits(site) == 2
    with opened(site.parent / "state") as store:
        assert [export_from_store(store, one.stream) for one in states] == states
    (tmp_path / "a").write_bytes(export_to_json(states[1]))
    assert "stream a: exists already" in run("state", "import", site, tmp_path / "a")[2]


def test_a_state_of_another_model_is_rejected(site: Path, run: Run, tmp_path: Path) -> None:
    """No stream of the file is imported."""
    pipeline = model(seed=1)
    pipeline.reset_damaged("x", ResetReason.COMMAND)
    good = run("state", "export", site, "--stream", "a")[1].encode()
    export = build_export("x", pipeline.row_schema, pipeline.table.row("x"), {})
    (tmp_path / "mixed").write_bytes(good + export_to_json(export))
    with unchanged(site):
        code, _, err = run("state", "import", site, tmp_path / "mixed", "--replace")
    ours = pipeline_of(site).row_schema.model_id
    assert (code, err) == (1, f"stream-gru: stream x: expected a state of model {ours}, got one of test-1\n")


def test_an_invalid_import_file_is_reported_with_its_line(site: Path, run: Run, tmp_path: Path) -> None:
    """Before anything is changed."""
    line = run("state", "export", site, "--stream", "a")[1]
    file = tmp_path / "states"
    with unchanged(site):
        file.write_text(f"{line}\n{line}")
        assert run("state", "import", site, file)[::2] == (
            1,
            f"stream-gru: {file}:3: stream a: expected each stream once, got it again\n",
        )
        file.write_text(f"{line}no state\n")
        code, _, err = run("state", "import", site, file)
        assert code == 1
        assert err.startswith(f"stream-gru: {file}:2: expected a file written by `stream-gru state export`")
        assert run("state", "import", site, tmp_path / "absent")[0] == 2


def test_an_empty_import_changes_nothing(site: Path, run: Run, tmp_path: Path) -> None:
    """The export of an empty store can be imported."""
    (tmp_path / "empty").touch()
    with unchanged(site):
        assert run("state", "import", site, tmp_path / "empty") == (0, "", "0 streams imported\n")


def test_an_export_skips_damaged_streams(site: Path, run: Run, tmp_path: Path) -> None:
    """It is named and the exit code is 1; alone it is an error."""
    damage(site, "stream", "b")
    code, out, err = run("state", "export", site, "--all", "--out", tmp_path / "all")
    assert (code, out) == (1, "")
    assert "stream-gru: not exported: stream b: stored state is damaged; forget the stream, or wait" in err
    assert f"{tmp_path}/all: 2 streams exported" in err
    assert [json.loads(line)["stream"] for line in (tmp_path / "all").read_text().splitlines()] == ["a", "c"]
    code, out, err = run("state", "export", site, "--stream", "b")
    assert (code, out) == (1, "")
    assert "stream b: stored state is damaged" in err


def test_an_export_skips_damaged_parts(site: Path, run: Run) -> None:
    """The stream is exported without the part, which is named."""
    damage(site, "component_state", "b")
    code, out, err = run("state", "export", site, "--stream", "b")
    assert (code, err) == (0, "stream-gru: stream b: the state of p is damaged and not exported\n")
    assert json.loads(out)["components"] == {}


def test_an_unwritable_export_is_an_error(site: Path, run: Run, tmp_path: Path) -> None:
    """With its name and the reason."""
    code, _, err = run("state", "export", site, "--all", "--out", tmp_path / "absent" / "file")
    assert (code, err) == (1, f"stream-gru: {tmp_path}/absent/file: cannot be written: No such file or directory\n")


# ---- reset, forget


def pending(config: Path) -> dict[str, int]:
    """The pending reset of each stream."""
    form = pipeline_of(config).table.row_layout
    with opened(config.parent / "state") as store:
        rows = {one.name: split_row(form, one.row) for one in store.rows() if one.row is not None}
    return {name: int(columns["pending_reset"]) for name, columns in rows.items()}


def test_one_stream_is_reset(site: Path, run: Run) -> None:
    """The others are unchanged."""
    assert run("state", "reset", site, "--stream", "b") == (0, "stream b: reset before the next sample (1)\n", "")
    assert {name for name, reason in pending(site).items() if reason == ResetReason.COMMAND} == {"b"}


def test_all_streams_are_reset_at_once(site: Path, run: Run) -> None:
    """In one transaction, which does not alter the clean-shutdown mark."""
    assert run("state", "reset", site, "--all") == (0, "all streams: reset before the next sample (3)\n", "")
    assert set(pending(site).values()) == {ResetReason.COMMAND}
    assert commits(site) == 2


def test_streams_of_two_row_schemas_are_reset(site: Path, run: Run) -> None:
    """A changed model leaves rows of the old schema behind."""
    other = model(seed=1)
    other.reset_damaged("old", ResetReason.NONE)
    with opened(site.parent / "state") as store:
        store.write(Commit(schema=other.row_schema.text, streams=[("old", other.table.row("old"))]))
        store.mark_clean_shutdown()
    assert run("state", "reset", site, "--all")[1] == "all streams: reset before the next sample (4)\n"
    assert pending(site) == dict.fromkeys(["a", "b", "c", "old"], ResetReason.COMMAND)
    with opened(site.parent / "state") as store:
        assert {one.name: one.schema == other.row_schema.text for one in store.rows()}["old"]


def test_a_reset_does_not_hide_an_unclean_shutdown(site: Path, run: Run) -> None:
    """The next start still reports the unclean shutdown."""
    with opened(site.parent / "state") as store:
        store.mark_clean_shutdown(False)
    run("state", "reset", site, "--all")
    with opened(site.parent / "state") as store:
        assert not store.clean_shutdown


def test_a_reset_reports_damaged_streams(site: Path, run: Run) -> None:
    """They are reset by their next sample, and stay unchanged."""
    damage(site, "stream", "a")
    expected = "all streams: reset before the next sample (2); damaged, reset by their next sample: 1\n"
    assert run("state", "reset", site, "--all") == (0, expected, "")
    with unchanged(site):
        code, out, _ = run("state", "reset", site, "--stream", "a")
    assert (code, out) == (0, "stream a: reset before the next sample (0); damaged, reset by their next sample: 1\n")


def test_a_forgotten_stream_leaves_no_rows(site: Path, run: Run) -> None:
    """A damaged stream can be forgotten too."""
    damage(site, "stream", "b")
    for name in "ab":
        assert run("state", "forget", site, "--stream", name) == (0, f"stream {name}: forgotten\n", "")
    found = store_content(site.parent / "state")
    assert [row[0] for row in found["stream"]] == ["c"]
    assert found["component_state"] == []


def test_the_position_of_a_source_can_be_reset(site: Path, run: Run) -> None:
    """An unknown source is rejected, with the sources that have a position."""
    assert run("state", "reset", site, "--source", "x")[::2] == (
        1,
        "stream-gru: source x: expected a source with a stored position (none)\n",
    )
    with opened(site.parent / "state") as store:
        store.write(Commit(positions={"replay": Position("file", 7), "stdin": Position("-", 1)}))
        store.mark_clean_shutdown()
    assert run("state", "reset", site, "--source", "x")[2].endswith(
        "expected a source with a stored position (replay, stdin)\n"
    )
    assert run("state", "reset", site, "--source", "replay") == (0, "source replay: starts at its beginning\n", "")
    with opened(site.parent / "state") as store:
        assert set(store.positions()) == {"stdin"}


# ---- what is no state


@pytest.mark.parametrize(
    "words", ["reset", "reset --all --stream a", "reset --all --source x", "export", "export --all --stream a", "show"]
)
def test_a_command_needs_exactly_one_target(site: Path, run: Run, words: str) -> None:
    """Otherwise it is a usage error with exit code 2."""
    command, *options = words.split()
    with unchanged(site):
        code, out, err = run("state", command, site, *options)
    assert (code, out) == (2, "")
    assert "expected one of" in err or "Missing option '--stream'" in err


def test_a_configuration_without_state_is_rejected(run: Run, tmp_path: Path) -> None:
    """The message names the key or the unset variable; no folder is created."""
    config = store_config(tmp_path / "here", state_dir="")
    code, _, err = run("state", "list", config)
    assert (code, err) == (
        2,
        f"stream-gru: {config}: run.state_dir: expected the folder of the stored states, got none\n",
    )
    config = store_config(tmp_path / "here", state_dir="$NOT_SET_HERE")
    (tmp_path / "empty").touch()
    code, _, err = run("state", "import", config, tmp_path / "empty")
    assert code == 2
    assert "run.state_dir: expected set environment variables, got " in err
    assert "STATE_DIRECTORY=/var/lib/stream-gru stream-gru state" in err
    assert sorted(path.name for path in config.parent.iterdir()) == ["gateway.toml", "model.bundle"]
    config.write_text("[metrics]\nenabled = false\n")
    assert run("state", "list", config)[0] == 2


def test_a_missing_store_is_an_error(run: Run, tmp_path: Path) -> None:
    """The message has the next step; no store is created."""
    config = store_config(tmp_path / "here")
    code, _, err = run("state", "list", config)
    assert code == 1
    assert err == (
        f"stream-gru: {config.parent}/state/state.db: no such store; start the daemon once, or import streams\n"
    )
    assert not (config.parent / "state").exists()


def test_a_damaged_store_is_left_unchanged(site: Path, run: Run) -> None:
    """Only the daemon moves it aside; an import does not create a new store in its place."""
    path = site.parent / "state" / "state.db"
    path.write_bytes(b"no database at all" * 1000)
    before = path.read_bytes()
    for words in (["list", site], ["import", site, "/dev/null"]):
        code, out, err = run("state", *words)
        assert (code, out) == (1, "")
        assert f"{path}: damaged" in err
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.damaged-*"))


def test_a_lock_without_a_daemon_is_an_error(site: Path, run: Run) -> None:
    """The message names the process and the address that does not respond, or the missing address."""
    with opened(site.parent / "state"):
        code, _, err = run("state", "list", site)
        assert code == 2
        assert "uses this state; stop it" in err
        assert f"{site}: metrics.enabled: expected true" in err
        config = store_config(site.parent, f'[metrics]\nlisten = "127.0.0.1:{free_port()}"\n')
        code, _, err = run("state", "list", config)
    assert code == 1
    assert [line.startswith("stream-gru: ") for line in err.splitlines()] == [True, True]
    assert "uses this state; stop it" in err
    assert "connection refused; start the daemon" in err
