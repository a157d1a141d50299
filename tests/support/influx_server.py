"""An HTTP server that accepts compressed lines and answers as a test sets."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class InfluxServer:
    """Answers with ``statuses`` one after the other, repeating the last one; holds its answer until ``go`` is set."""

    statuses: list[int]
    headers: dict[str, str] = field(default_factory=dict)
    text: bytes = b""
    bodies: list[bytes] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    came: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Take a request and answer it."""
        body = gzip.decompress(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.asked.append(dict(handler.headers) | {"path": handler.path})
        self.came.set()
        self.go.wait(10)
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if status < 300:
            self.bodies.append(body)
        handler.send_response(status)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(self.text)))
        handler.end_headers()
        handler.wfile.write(self.text)

    @property
    def rows(self) -> bytes:
        """All rows that were accepted."""
        return b"".join(self.bodies)


@contextmanager
def influx_server(*statuses: int, hang: bool = False, **options: object) -> Iterator[InfluxServer]:
    """A server on a free port of this machine."""
    server = InfluxServer(list(statuses), **options)  # type: ignore[arg-type]
    if not hang:
        server.go.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            """A request."""
            try:
                server.answer(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}/api/v2/write?bucket=b&precision=ns"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.go.set()
        http.shutdown()
        thread.join()
        http.server_close()
