"""Serial ports that are really opened: pseudo-terminals, TCP connections, pyserial's loop://."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import serial
from cobs import cobs
from serial import rfc2217

from stream_gru.connectors.sources.serial import SerialSource, SerialSourceConfig
from stream_gru.connectors.sources.threaded import ThreadedSource
from stream_gru.core.errors import ConfigError, SourceUnavailable
from stream_gru.core.protocols import Source
from stream_gru.core.types import DropReason, Position, RawMessage
from tests.support.serial_devices import SerialDevice, TcpDevice
from tests.support.waiting import wait_for


@pytest.fixture
def plugged(tmp_path: Path) -> Iterator[SerialDevice]:
    """A device that is plugged in."""
    with SerialDevice(tmp_path / "sensor0") as plugged:
        yield plugged


def serial_source(
    port: str | Path, framing: Literal["lines", "cobs"] = "lines", stream: str = "", max_frame_bytes: int = 64
) -> SerialSource:
    """A source of this port with a fixed clock."""
    config = SerialSourceConfig(
        port=str(port), format="jsonl", framing=framing, stream=stream, max_frame_bytes=max_frame_bytes
    )
    return SerialSource(config, name="port", wall_ns=lambda: 77)


def read_messages(source: Source, n: int) -> list[RawMessage]:
    """The next ``n`` messages."""
    messages: list[RawMessage] = []

    def enough() -> bool:
        messages.extend(source.poll(n - len(messages), 0.05))
        return len(messages) >= n

    wait_for(enough)
    return messages


def payloads(messages: list[RawMessage]) -> list[bytes]:
    """The received payloads."""
    return [message.payload for message in messages]


def test_lines_arrive_as_messages(plugged: SerialDevice) -> None:
    """Each line is one timestamped, numbered message; the first one, which may be partial, is skipped."""
    source = serial_source(plugged.link, stream="pump-1")
    assert isinstance(source, Source)
    assert not source.health().connected
    source.open(None)
    assert source.health().connected
    plugged.send(b'"x":1}\r\n{"x":2}\r\n\r\n{"x":3}\n')
    assert read_messages(source, 2) == [
        RawMessage(line, "pump-1", b"", 77, Position("port", number), source="port", topic=str(plugged.link))
        for number, line in enumerate([b'{"x":2}', b'{"x":3}'], 1)
    ]
    assert source.poll(10, 0.0) == []
    source.commit(Position("port", 2))
    source.close()
    source.close()
    with pytest.raises(SourceUnavailable, match="not open"):
        source.poll(1, 0.0)


def test_a_line_may_come_in_pieces(plugged: SerialDevice) -> None:
    """Byte by byte gives the same as at once, and a poll returns no more than the requested number."""
    source = serial_source(plugged.link)
    source.open(None)
    for byte in b"\nabc\ndef\nghi\n":
        plugged.send(bytes([byte]))
        if byte == ord("b"):
            assert source.poll(10, 0.2) == []
    assert payloads(read_messages(source, 1)) == [b"abc"]
    assert payloads(list(source.poll(1, 1.0))) == [b"def"]
    assert payloads(list(source.poll(9, 1.0))) == [b"ghi"]
    source.close()


def test_rubbish_costs_only_the_line_it_is_in(plugged: SerialDevice) -> None:
    """Noise between lines is a line that a decoder rejects; a line without end is one counted fault."""
    source = serial_source(plugged.link)
    source.open(None)
    plugged.send(b"\nfirst\n\xff\x00\x80 noise\nsecond\n" + b"x" * 3000 + b"\nthird\n")
    messages = read_messages(source, 5)
    assert payloads(messages) == [b"first", b"\xff\x00\x80 noise", b"second", b"", b"third"]
    assert [message.fault for message in messages] == [None, None, None, DropReason.OVERLONG_LINE, None]
    source.close()


def test_cobs_frames_arrive_as_they_were_sent(plugged: SerialDevice) -> None:
    """Binary frames pass through a real terminal unchanged."""
    source = serial_source(plugged.link, framing="cobs")
    source.open(None)
    frames = [cobs.encode(data) for data in (bytes(range(32)), b"\x03\x04\x11\x13\x1a\r\n\x7f\xff", b"\0\0")]
    plugged.send(b"rest\0" + b"\0".join(frames) + b"\0" + b"\x01" * 65 + b"\0")
    messages = read_messages(source, 4)
    assert payloads(messages) == [*frames, b""]
    assert messages[3].fault is DropReason.OVERLONG_LINE
    source.close()


def test_a_device_that_is_pulled_out_and_plugged_in_again_is_found(
    plugged: SerialDevice, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a restart: the partial line is discarded, message numbers continue, and each change is logged once."""
    caplog.set_level(logging.INFO, "stream_gru.connectors.sources.threaded")
    queued = ThreadedSource(
        serial_source(plugged.link), name="port", queue_size=10, queue_bytes=9999, reconnect_max_delay_s=0.02
    )
    queued.open(None)
    wait_for(lambda: queued.health().connected)
    plugged.send(b"\none\ntwo\nhal")
    assert payloads(read_messages(queued, 2)) == [b"one", b"two"]
    plugged.pull()
    wait_for(lambda: not queued.health().connected)
    plugged.plug()
    wait_for(lambda: queued.health().connected)
    plugged.send(b"f\nthree\n")
    (message,) = read_messages(queued, 1)
    assert (message.payload, message.position) == (b"three", Position("port", 3))
    assert queued.health().reconnects == 1
    queued.close()
    assert not queued.health().connected
    levels = [record.levelname for record in caplog.records]
    assert levels.count("INFO") == 1
    assert 1 <= levels.count("WARNING") <= 2  # lost; then possibly: no such device


def test_a_device_that_is_gone_is_unavailable(plugged: SerialDevice) -> None:
    """A poll raises it and closes the port; opening it again says what is wrong."""
    source = serial_source(plugged.link)
    source.open(None)
    plugged.pull()
    with pytest.raises(SourceUnavailable, match="sensor0: lost: "):
        read_messages(source, 1)
    assert not source.health().connected
    with pytest.raises(SourceUnavailable, match="sensor0: no such device"):
        source.open(None)


def test_a_port_is_opened_by_one_program_only(plugged: SerialDevice) -> None:
    """The error of the second one names the reason."""
    first, second = serial_source(plugged.link), serial_source(plugged.link)
    first.open(None)
    with pytest.raises(SourceUnavailable, match="another program uses it"):
        second.open(None)
    first.close()
    second.open(None)
    second.close()


def test_messages_are_numbered_on_from_a_position(plugged: SerialDevice) -> None:
    """A number is never reused, also after a restart of the process."""
    source = serial_source(plugged.link)
    source.open(Position("port", 41))
    plugged.send(b"\nx\n")
    assert read_messages(source, 1)[0].position == Position("port", 42)
    source.close()


def test_the_guarantee_of_a_port_is_logged_once(plugged: SerialDevice, caplog: pytest.LogCaptureFixture) -> None:
    """At most once; not logged again each time the port is reopened."""
    caplog.set_level(logging.INFO, "stream_gru")
    source = serial_source(plugged.link)
    for _ in range(3):
        source.open(None)
        source.close()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "port: at most once: what is sent while the port is closed is lost")
    ]


def test_the_error_of_a_missing_device_lists_the_existing_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error lists the existing ports."""
    monkeypatch.setattr("stream_gru.connectors.sources.serial._PLACES", ((str(tmp_path), "usb-*"),))
    source = serial_source(tmp_path / "ttyUSB7")
    with pytest.raises(SourceUnavailable, match="ttyUSB7: no such device; existing ports: none"):
        source.open(None)
    (tmp_path / "usb-Arduino_1").touch()
    with pytest.raises(SourceUnavailable, match=r"no such device; existing ports: /.*/usb-Arduino_1$"):
        source.open(None)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (serial.SerialException(errno.EACCES, "no"), "add the user to the group dialout"),
        (serial.SerialException(errno.EBUSY, "no"), "another program uses it"),
        (serial.SerialException("Could not configure port: (5, 'Input/output error')"), "Could not configure port"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_the_error_of_a_port_that_cannot_be_opened_has_the_next_step(failure: Exception, expected: str) -> None:
    """Permission, another program, and any other error: each can be retried."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise failure

    config = SerialSourceConfig(port="/dev/ttyUSB0", format="jsonl")
    with pytest.raises(SourceUnavailable, match=f"/dev/ttyUSB0: cannot be opened: .*{expected}"):
        SerialSource(config, name="port", opener=refuse).open(None)


def test_a_file_is_no_port(tmp_path: Path) -> None:
    """A path that is no terminal is an error and is not retried."""
    (tmp_path / "file").touch()
    with pytest.raises(SourceUnavailable, match=r"file: cannot be opened: .*Inappropriate ioctl"):
        serial_source(tmp_path / "file").open(None)


def test_an_unknown_url_is_refused_before_anything_is_opened() -> None:
    """A configuration error is raised at once; one that only pyserial detects, at open."""
    with pytest.raises(ConfigError, match="port: expected a device or a URL that pyserial knows, got 'tcp://x:1'"):
        serial_source("tcp://x:1")

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("Invalid baud rate: 77")

    config = SerialSourceConfig(port="/dev/ttyUSB0", format="jsonl", baud_rate=77)
    with pytest.raises(ConfigError, match="/dev/ttyUSB0: cannot be opened with these settings: Invalid baud rate: 77"):
        SerialSource(config, name="port", opener=refuse).open(None)


@pytest.mark.parametrize("scheme", ["loop", "spy"])
def test_other_ports_of_pyserial_are_read(scheme: str, plugged: SerialDevice) -> None:
    """One without a descriptor, and one that prints what it reads."""
    opened: list[Any] = []

    def opener(*arguments: Any, **options: Any) -> Any:
        opened.append(serial.serial_for_url(*arguments, **options))
        return opened[-1]

    url = "loop://" if scheme == "loop" else f"spy://{plugged.link}"
    source = SerialSource(SerialSourceConfig(port=url, format="jsonl"), name="port", opener=opener)
    source.open(None)
    assert source.poll(10, 0.0) == []
    send: Callable[[bytes], Any] = opened[0].write if scheme == "loop" else plugged.send
    send(b"rest\none\ntwo\n")
    assert payloads(read_messages(source, 2)) == [b"one", b"two"]
    source.close()
    with pytest.raises(SourceUnavailable):
        source.poll(1, 0.0)


def test_a_connection_that_is_dropped_is_made_again() -> None:
    """Everything sent on each connection is received, and the loss counts as one."""
    with TcpDevice() as far:
        queued = ThreadedSource(
            serial_source(far.url), name="port", queue_size=9999, queue_bytes=99_999, reconnect_max_delay_s=0.02
        )
        queued.open(None)
        connection = far.accept()
        wait_for(lambda: queued.health().connected)  # pyserial discards pending input when it opens
        connection.sendall(b"rest\n" + b"".join(b"line %d\n" % i for i in range(5000)))
        assert payloads(read_messages(queued, 5000)) == [b"line %d" % i for i in range(5000)]
        far.drop()
        wait_for(lambda: not queued.health().connected)
        connection = far.accept()
        wait_for(lambda: queued.health().connected)
        connection.sendall(b"rest\nagain\n")
        assert payloads(read_messages(queued, 1)) == [b"again"]
        assert queued.health().reconnects == 1
        queued.close()


@contextmanager
def rfc2217_server(far: TcpDevice) -> Iterator[Callable[[bytes], None]]:
    """The server of pyserial behind a TCP port; yields a function that sends bytes as the device would."""
    connected, done = threading.Event(), threading.Event()
    served: list[tuple[Any, socket.socket]] = []

    def serve() -> None:
        connection = far.accept()
        manager = rfc2217.PortManager(serial.serial_for_url("loop://", timeout=0), Locked(connection))
        served.append((manager, connection))
        connected.set()
        while data := connection.recv(1024):
            b"".join(manager.filter(data))
        done.set()

    def send(data: bytes) -> None:
        assert connected.wait(5)
        manager, connection = served[0]
        connection.sendall(b"".join(manager.escape(data)))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield send
    finally:
        far.hang_up()
        thread.join(5)
        assert done.is_set()


class Locked:
    """What the server writes its answers to."""

    def __init__(self, connection: socket.socket) -> None:
        self.write = connection.sendall


@pytest.mark.filterwarnings("ignore:set.* is deprecated:DeprecationWarning")
def test_a_port_of_another_machine_is_read_and_its_loss_is_logged() -> None:
    """Over RFC 2217, whose settings are negotiated first."""
    with TcpDevice() as far, rfc2217_server(far) as send:
        source = serial_source(far.url.replace("socket", "rfc2217"))
        source.open(None)
        send(b"rest\n\xff\xff two\nthree\n")
        assert payloads(read_messages(source, 2)) == [b"\xff\xff two", b"three"]
        far.hang_up()
        with pytest.raises(SourceUnavailable, match=r"lost: .*reader thread died"):
            read_messages(source, 1)
        assert not source.health().connected


def test_losing_a_port_again_and_again_leaves_nothing_open(plugged: SerialDevice) -> None:
    """Neither descriptors nor threads leak."""
    source = serial_source(plugged.link)
    before = 0
    for turn in range(20):
        source.open(None)
        plugged.pull()
        with pytest.raises(SourceUnavailable):
            read_messages(source, 1)
        with pytest.raises(SourceUnavailable):
            source.open(None)
        plugged.plug()
        if turn == 1:
            before = len(list(Path("/proc/self/fd").iterdir()))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_server_that_is_not_there_is_unavailable() -> None:
    """No listener: it can be retried."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(SourceUnavailable, match=rf"socket://127.0.0.1:{port}: cannot be opened: .*refused"):
        serial_source(f"socket://127.0.0.1:{port}").open(None)


def test_a_server_elsewhere_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    """There is no authentication; on this machine there is no warning."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("not tried")

    for url in ("socket://192.0.2.1:7000", "rfc2217://gateway.example:7000", "socket://[::1]:7", "rfc2217://localhost"):
        config = SerialSourceConfig(port=url, format="jsonl")
        source = SerialSource(config, name=url[:9], opener=refuse)
        for _ in range(2):
            with pytest.raises(SourceUnavailable):
                source.open(None)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(": ")[0] for line in lines] == ["socket://", "rfc2217:/"]
    assert all("no authentication" in line for line in lines)
