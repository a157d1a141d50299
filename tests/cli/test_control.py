"""Commands to a running daemon, against a server with a fake daemon: messages and exit codes."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from stream_gru.cli.control import Remote, remote_at, remote_of, response_text
from stream_gru.cli.tap import TapView
from stream_gru.config import parse_config
from stream_gru.connectors.registry import CATALOG
from stream_gru.core.errors import ConfigError
from stream_gru.runtime.http.server import WebServer
from tests.support.cli import Run
from tests.support.fake_daemon import TOKEN, FakeDaemon, daemon_outputs, serving
from tests.support.network import free_port
from tests.support.waiting import wait_for


@dataclass
class ControlledDaemon:
    """A daemon, its server and its configuration."""

    daemon: FakeDaemon
    server: WebServer
    config: Path

    @property
    def token(self) -> Path:
        """The file with the token."""
        return self.config.parent / "token"


def control_config(folder: Path, listen: str, control: str = '[control]\ntoken_file = "token"\n') -> Path:
    """A configuration with the address of the daemon."""
    path = folder / "run.toml"
    path.write_text(f'[metrics]\nlisten = "{listen}"\n{control}')
    token = folder / "token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    return path


@pytest.fixture
def controlled(tmp_path: Path) -> Iterator[ControlledDaemon]:
    """A running daemon and its configuration."""
    daemon = FakeDaemon()
    with serving(daemon) as server:
        yield ControlledDaemon(daemon, server, control_config(tmp_path, server.address.removeprefix("http://")))


@pytest.mark.parametrize("action", ["reset", "pause", "resume"])
def test_a_command_reaches_the_daemon(controlled: ControlledDaemon, run: Run, action: str) -> None:
    """Each command runs for one stream and for all, and its response is printed."""
    assert run(action, controlled.config, "--stream", "a") == (0, f"{action} done\n", "")
    code, out, err = run(action, controlled.config, "--all", "--json")
    assert (code, json.loads(out), err) == (0, {"ok": True, "text": f"{action} done", "streams": 2}, "")
    assert controlled.daemon.done == [(action, "a"), (action, None)]


def test_a_rejected_command_is_an_error(controlled: ControlledDaemon, run: Run) -> None:
    """An unknown stream gives exit code 1, as text and as JSON."""
    assert run("reset", controlled.config, "--stream", "x") == (1, "", "stream-gru: unknown stream 'x'\n")
    code, out, _ = run("reset", controlled.config, "--stream", "x", "--json")
    assert (code, json.loads(out)["ok"]) == (1, False)
    code, _, err = run("reset", controlled.config, "--stream", "a\nb")
    assert code == 1
    assert "stream: expected" in err
    assert controlled.daemon.done == []


@pytest.mark.parametrize("options", [(), ("--all", "--stream", "a")])
def test_a_command_needs_one_target(controlled: ControlledDaemon, run: Run, options: tuple[str, ...]) -> None:
    """Neither or both of --stream and --all is a usage error."""
    code, _, err = run("pause", controlled.config, *options)
    assert code == 2
    assert "expected one of --stream NAME and --all" in err


def test_a_missing_token_is_explained(tmp_path: Path, run: Run) -> None:
    """Exit code 2, with the missing lines of the configuration."""
    code, out, err = run("reset", control_config(tmp_path, "127.0.0.1:9", control=""), "--all")
    assert (code, out) == (2, "")
    assert "control.token_file: expected a file with the token of the daemon, got none" in err
    assert 'token_file = "control.token"' in err


def test_a_wrong_token_is_an_error(controlled: ControlledDaemon, run: Run) -> None:
    """Exit code 1; the token is never printed."""
    for other in ("another token ü", "x"):
        controlled.token.write_text(other)
        code, out, err = run("reset", controlled.config, "--all")
        assert (code, out) == (1, "")
        assert "control.token_file: the daemon rejects this token" in err
        assert other not in err
    controlled.token.chmod(0o644)
    code, _, err = run("reset", controlled.config, "--all")
    assert code == 2
    assert "chmod 600" in err


def test_a_daemon_without_a_token_must_be_restarted(tmp_path: Path, run: Run) -> None:
    """It was started before the token was configured."""
    with serving(FakeDaemon(token="")) as server:
        code, _, err = run("reset", control_config(tmp_path, server.address.removeprefix("http://")), "--all")
    assert code == 1
    assert "control.token_file is not set; restart the daemon" in err


@pytest.mark.parametrize(
    "command", [("reset", "{}", "--all"), ("tap", "{}", "--wait", "0"), ("health", "--url", "{url}"), ("health", "{}")]
)
def test_a_stopped_daemon_is_an_error(tmp_path: Path, run: Run, command: tuple[str, ...]) -> None:
    """One line names the address and the next step."""
    port = free_port()
    config, url = control_config(tmp_path, f"127.0.0.1:{port}"), f"http://127.0.0.1:{port}"
    code, out, err = run(*(part.format(config, url=url) for part in command))
    assert (code, out) == (1, "")
    assert err == f"stream-gru: {url}: connection refused; start the daemon with `stream-gru run CONFIG`\n"


def test_another_server_is_an_error(tmp_path: Path, run: Run) -> None:
    """A response that is not HTTP gives exit code 1 and one line."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(20)

        def answer() -> None:
            client, _ = other.accept()
            with client:
                client.settimeout(20)
                client.recv(1000)
                client.sendall(b"SSH-2.0-x\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        port = other.getsockname()[1]
        code, _, err = run("reset", control_config(tmp_path, f"127.0.0.1:{port}"), "--all")
        thread.join(20)
    assert code == 1
    assert f"http://127.0.0.1:{port}: no HTTP response" in err


def test_health_sets_the_exit_code(controlled: ControlledDaemon, run: Run) -> None:
    """0 for a healthy daemon, 2 for an invalid address or configuration."""
    assert run("health", "--url", controlled.server.address) == (0, "healthy\n", "")
    assert run("health", controlled.config) == (0, "healthy\n", "")
    assert run("health", "--url", "ftp://127.0.0.1:1")[0] == 2
    assert run("health", controlled.config.with_name("none.toml"))[0] == 2
    code, _, err = run("health", controlled.config, "--url", controlled.server.address)
    assert code == 2
    assert "expected CONFIG or --url, not both" in err


def test_health_without_arguments_asks_the_default_address(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The health check of a container names no address."""
    asked: list[str] = []

    def request(remote: Remote, method: str, path: str) -> tuple[int, str]:
        asked.append(f"{method} {remote}{path}")
        return 503, "the loop has not turned for 99 s"

    monkeypatch.setattr(Remote, "request", request)
    assert run("health") == (1, "the loop has not turned for 99 s\n", "")
    assert asked == [f"GET {remote_of(parse_config('', 'run.toml', CATALOG), Path('run.toml'))}/-/healthy"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[metrics]\nlisten = "127.0.0.1:9723"', Remote("127.0.0.1", 9723)),
        ('[metrics]\nlisten = "0.0.0.0:80"', Remote("127.0.0.1", 80)),
        ('[metrics]\nlisten = "[::]:80"', Remote("::1", 80)),
        ('[metrics]\nlisten = "gateway:80"', Remote("gateway", 80)),
        ("", Remote("127.0.0.1", 9723)),
    ],
)
def test_the_address_is_that_of_the_configuration(text: str, expected: Remote) -> None:
    """A daemon that listens on all addresses is reached on loopback."""
    found = remote_of(parse_config(text, "run.toml", CATALOG), Path("run.toml"))
    assert found == expected
    assert remote_at(str(found)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[metrics]\nenabled = false", "metrics.enabled: expected true"),
        ('[metrics]\nlisten = "127.0.0.1:0"', "metrics.listen: expected a fixed port"),
    ],
)
def test_commands_need_a_fixed_address(text: str, words: str) -> None:
    """Metrics must be enabled, on a fixed port."""
    with pytest.raises(ConfigError, match=words):
        remote_of(parse_config(text, "run.toml", CATALOG), Path("run.toml"))


@pytest.mark.parametrize("url", ["", "x", "https://a:1", "http://a", "http://a:x", "http://a:1/b", "http://[a:1"])
def test_an_invalid_address_is_rejected(url: str) -> None:
    """An address has a scheme, a host and a port, and no path."""
    with pytest.raises(ConfigError, match="expected an address such as"):
        remote_at(url)


def test_response_text() -> None:
    """The text of a JSON object, or the start of anything else."""
    assert response_text('{"text": "a"}') == "a"
    assert response_text("[1]") == "[1]"
    assert response_text("<html>\n" + "x" * 999) == ("<html> " + "x" * 999)[:200]


class TapProcess:
    """A ``tap`` in its own process; with ``terminal`` it reads and writes there."""

    def __init__(self, *arguments: object, terminal: int | None = None) -> None:
        line = [sys.executable, "-m", "stream_gru", "tap", *map(str, arguments)]
        output = subprocess.PIPE if terminal is None else terminal
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "20"}
        self.process = subprocess.Popen(
            line,
            stdin=terminal,
            stdout=output,
            stderr=output,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def end(self) -> tuple[int, str, str]:
        """Wait for the end: exit code, standard output, standard error."""
        out, err = self.process.communicate(timeout=20)
        assert "Traceback" not in err, err
        return self.process.returncode, out, err

    def kill(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.communicate(timeout=20)


Tap = Callable[..., TapProcess]


@pytest.fixture
def start() -> Iterator[Tap]:
    """Start a ``tap``; every process is killed after the test."""
    taps: list[TapProcess] = []

    def begin(*arguments: object, terminal: int | None = None) -> TapProcess:
        taps.append(TapProcess(*arguments, terminal=terminal))
        return taps[-1]

    yield begin
    for tap in taps:
        tap.kill()


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a pseudo-terminal."""
    near, far = os.openpty()
    yield near, far
    os.close(near)
    os.close(far)


def test_children_can_be_interrupted() -> None:
    """Ctrl-C works in child processes, also when the tests run in the background."""
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == "True\n"


def clients_connected(daemon: FakeDaemon, n: int = 1) -> bool:
    """Whether ``n`` clients are connected."""
    return wait_for(lambda: len(daemon.feed._clients) == n, 20)


def test_tap_prints_lines(controlled: ControlledDaemon, start: Tap) -> None:
    """Into a pipe it prints JSON lines, of the chosen stream and number."""
    tap = start(controlled.config, "--stream", "b", "--count", 2)
    assert clients_connected(controlled.daemon)
    controlled.daemon.feed.write(daemon_outputs(["a", "b", "b", "b"]))
    code, out, err = tap.end()
    assert (code, err) == (0, "")
    assert [(json.loads(line)["stream"], json.loads(line)["steps"]) for line in out.splitlines()] == [
        ("b", 1),
        ("b", 2),
    ]


def test_an_interrupt_ends_tap_with_exit_code_0(controlled: ControlledDaemon, start: Tap) -> None:
    """Ctrl-C is the normal end."""
    tap = start("--url", controlled.server.address)
    assert clients_connected(controlled.daemon)
    tap.process.send_signal(signal.SIGINT)
    assert tap.end() == (0, "", "")


def test_tap_ends_with_the_daemon(controlled: ControlledDaemon, start: Tap) -> None:
    """The end of the daemon gives exit code 1; dropped outputs are reported."""
    tap = start("--url", controlled.server.address)
    assert clients_connected(controlled.daemon)
    controlled.daemon.feed.write(daemon_outputs(["a"] * 300))
    controlled.daemon.feed.close()
    code, out, err = tap.end()
    assert code == 1
    assert len(out.splitlines()) == 256
    assert 'outputs were dropped, since they arrive faster than they are read: {"rows":44}' in err
    assert err.endswith(f"stream-gru: {controlled.server.address}: the daemon has ended\n")


def test_tap_needs_one_daemon(controlled: ControlledDaemon, run: Run) -> None:
    """Neither or both of CONFIG and --url is a usage error; the daemon rejects an invalid stream."""
    assert run("tap")[0] == 2
    assert run("tap", controlled.config, "--url", controlled.server.address)[0] == 2
    code, _, err = run("tap", controlled.config, "--stream", "a\nb")
    assert code == 1
    assert "stream: expected" in err


def test_tap_draws_on_a_terminal(controlled: ControlledDaemon, start: Tap, terminal: tuple[int, int]) -> None:
    """On a terminal it draws a table, and Ctrl-C gives exit code 0."""
    near, far = terminal
    tap = start(controlled.config, terminal=far)
    assert clients_connected(controlled.daemon)
    controlled.daemon.feed.write(daemon_outputs(["pump-1", "pump-2"]))
    shown, deadline, interrupted = "", time.monotonic() + 20, False
    # The terminal must be read to the end: otherwise tap blocks on a full buffer.
    while tap.process.poll() is None and time.monotonic() < deadline:
        if select.select([near], [], [], 0.05)[0]:
            shown += os.read(near, 65536).decode(errors="replace")
        if "pump-2" in shown and not interrupted:
            tap.process.send_signal(signal.SIGINT)
            interrupted = True
    assert interrupted, shown
    assert tap.process.poll() == 0, shown
    assert "outputs of http://127.0.0.1" in shown
    assert "pump-1" in shown


def table_text(view: TapView, height: int = 40) -> str:
    """The table as text."""
    console = Console(file=io.StringIO(), width=160, height=height)
    with console.capture() as capture:
        console.print(view.draw())
    return capture.get()


def test_the_table_shows_the_newest_row_of_each_stream() -> None:
    """A row has the forecast, interval, class and status of its stream."""
    view = TapView("x", Console(file=io.StringIO(), width=160, height=40))
    row = {
        "stream": "b", "time": "2026-03-01T01:02:03Z", "forecast": {"flow": [1.0, 2.5], "heat": [None, None]},
        "interval": {"flow": [[0, 1], [2, 3]], "heat": [[None, None], [None, None]]},
        "class": "normal", "probabilities": {"normal": 0.75, "leak": None}, "status": "ok",
    }  # fmt: skip
    for value in (5.0, 1.0):
        view.on_event("", json.dumps({**row, "forecast": {**row["forecast"], "flow": [value, 2.5]}}))  # type: ignore[dict-item]
    view.on_event("", json.dumps({"stream": "a", "time": "t", "class": ["x", "y"], "status": "warming 1/2"}))
    view.on_event("dropped", '{"rows": 1234}')
    shown = table_text(view)
    for words in ("01:02:03", "flow", "█▁", "2.5", "2 .. 3", "normal 75%", "heat", "x, y", "warming 1/2"):
        assert words in shown
    assert "2 streams, 3 outputs" in shown
    assert "1,234 dropped" in shown
    assert shown.index("warming") < shown.index("normal")


def test_the_table_survives_malformed_events() -> None:
    """Malformed rows are ignored; text is neither markup nor a control sequence."""
    view = TapView("x", Console(file=io.StringIO(), width=160, height=10))
    for data in ("", "x", "[]", "null", "{}", '{"stream": 1, "forecast": 5}', '{"stream": "q", "forecast": {"a": []}}'):
        view.on_event("", data)
    view.on_event("dropped", "x")
    view.on_event("other", "{}")
    view = TapView("x", Console(file=io.StringIO(), width=160, height=10))
    view.on_event("", json.dumps({"stream": "[red]a", "time": "t", "class": "\x1b[2Jb", "status": "ok"}))
    shown = table_text(view)
    assert "[red]a" in shown
    assert "\x1b" not in shown
    for n in range(2000):
        view.on_event("", json.dumps({"stream": f"s{n}", "time": "t", "status": "ok"}))
    assert "1000 streams, 2,001 outputs" in table_text(view)
    assert len(table_text(view).splitlines()) <= 10
