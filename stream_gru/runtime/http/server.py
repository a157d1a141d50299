"""The HTTP server: its routes, and uvicorn in a thread of its own.

    GET  /metrics, /-/healthy, /-/ready
    GET  /api/v1/status, streams, outputs                     with an `Api`
    POST /api/v1/reset, pause, resume, export, import, list, forget

`limits` bounds what slow and greedy clients can do.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
from collections.abc import Awaitable, Callable

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from stream_gru.core.errors import ConfigError
from stream_gru.runtime.control.commands import Action, RejectedCommands
from stream_gru.runtime.http.api import Api, command_route, outputs_route, status_route, streams_route
from stream_gru.runtime.http.limits import (
    BACKLOG,
    QUEUE,
    BoundedConnection,
    CostCache,
    HostGuard,
    is_loopback,
    limit_buffers,
)

log = logging.getLogger(__name__)

_STOP_S = 2.0
# On every response: pages may load only our own files, may not be framed, and content types are not guessed.
_HEADERS = [
    ("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("Connection", "close"),
]
_LISTEN = re.compile(r"(?P<host>\[[0-9a-fA-F:]+\]|[^:\s]+):(?P<port>\d{1,5})")


class _Server(uvicorn.Server):
    """Accepts few connections at a time from a long queue; asyncio has one number for both."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(QUEUE)


class WebServer:
    """Serves the endpoints on ``listen`` (``host:port``; port 0 picks a free one) until `close`.

    ``healthy`` and ``ready`` return the result of a probe and a line that explains it.  Without an ``api`` there are
    only probes and metrics.  Raises ConfigError for an invalid address.
    """

    def __init__(
        self,
        listen: str,
        registry: CollectorRegistry,
        healthy: Callable[[], tuple[bool, str]],
        ready: Callable[[], tuple[bool, str]],
        *,
        api: Api | None = None,
    ) -> None:
        found = _LISTEN.fullmatch(listen)
        if found is None or int(found["port"]) > 65_535:
            raise ConfigError(f'metrics.listen: expected an address and port such as "127.0.0.1:9723", got {listen!r}')
        self._host, self._port = found["host"].strip("[]"), int(found["port"])
        self._app = build_app(registry, healthy, ready, self._host, api)
        self._api = api
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.address = ""

    def open(self) -> None:
        """Bind the address and serve.  Raises ConfigError when it is not available."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._host, self._port))
            limit_buffers(listener)
            listener.listen(QUEUE)
        except OSError as error:
            listener.close()
            raise ConfigError(
                f"metrics.listen: {self._host}:{self._port} is not available: {error.strerror};"
                " choose another port (0 picks a free one)"
            ) from error
        shown = f"[{self._host}]" if family == socket.AF_INET6 else self._host
        self.address = f"http://{shown}:{listener.getsockname()[1]}"
        self._warn(listener.getsockname()[0])
        config = uvicorn.Config(
            self._app,
            log_config=None,
            log_level="error",  # errors of clients are not logged: a flood would fill the disk
            access_log=False,
            headers=_HEADERS,
            backlog=BACKLOG,
            timeout_graceful_shutdown=1,
            lifespan="off",
            server_header=False,
            ws="none",
            http=BoundedConnection,
            loop="asyncio",
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._serve, args=(self._server, listener), name="web", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Disconnect clients and stop serving; may be called twice."""
        if self._api is not None:
            self._api.broadcaster.disconnect_all()
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(_STOP_S)
            self._server = self._thread = None

    def _warn(self, bound: str) -> None:
        """Warn about what other machines can do."""
        if is_loopback(bound):
            return
        if self._api is None or not self._api.token.strip():
            log.warning("metrics.listen: %s: no token: anyone who can connect can read everything", self.address)
        else:
            log.warning("metrics.listen: %s: the token is sent in plain text", self.address)

    @staticmethod
    def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
        # serve() without capture_signals: signals belong to the daemon, in the main thread.
        with listener:
            asyncio.run(server._serve(sockets=[listener]))


def build_app(
    registry: CollectorRegistry,
    healthy: Callable[[], tuple[bool, str]],
    ready: Callable[[], tuple[bool, str]],
    host: str,
    api: Api | None,
) -> ASGIApp:
    """Return the endpoints as an ASGI application for the host name ``host``."""

    def probe(check: Callable[[], tuple[bool, str]]) -> Callable[[Request], Awaitable[Response]]:
        async def respond(_: Request) -> Response:
            ok, text = check()
            return PlainTextResponse(f"{text}\n", 200 if ok else 503)

        return respond

    cache: CostCache[bytes] = CostCache()

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        text = cache.get(content_type, lambda: encode(registry))
        return Response(text, headers={"Content-Type": content_type})

    routes = [
        Route("/-/healthy", probe(healthy), methods=["GET"]),
        Route("/-/ready", probe(ready), methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]
    if api is not None:
        rejected = RejectedCommands("HTTP", api.rejected)
        routes += [
            Route("/api/v1/status", status_route(api), methods=["GET"]),
            Route("/api/v1/streams", streams_route(api), methods=["GET"]),
            Route("/api/v1/outputs", outputs_route(api), methods=["GET"]),
            *(Route(f"/api/v1/{action}", command_route(api, action, rejected), methods=["POST"]) for action in Action),
        ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False  # the target of a redirect would come from the client
    return HostGuard(app, host)
