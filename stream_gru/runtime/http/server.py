"""The server: its routes, and uvicorn in a thread of its own.

    GET  /metrics, /-/healthy, /-/ready
    GET  /api/v1/status, /api/v1/streams, /api/v1/outputs     where there is an `Api`
    POST /api/v1/reset, /api/v1/pause, /api/v1/resume, /api/v1/export, /api/v1/import

A slow or greedy client harms nobody: see connection.py.
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
# Of every answer: nothing but our own files may be loaded by a page, nobody may frame it, and kinds are not guessed.
_HEADERS = [
    ("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("Connection", "close"),
]
_LISTEN = re.compile(r"(?P<host>\[[0-9a-fA-F:]+\]|[^:\s]+):(?P<port>\d{1,5})")


class _Server(uvicorn.Server):
    """Accepts few at a time from a long queue; asyncio has one number for both."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(QUEUE)


class WebServer:
    """Serves the endpoints on ``listen`` (``host:port``; port 0 chooses a free one) until `close`.

    ``healthy`` and ``ready`` answer the probes: (is it well, why); without an ``api`` there are only they and the
    metrics.  Raises ConfigError for another form of address.
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
        """Bind and serve.  Raises ConfigError when the address cannot be had."""
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
                f"metrics.listen: {self._host}:{self._port} cannot be had: {error.strerror};"
                " choose another port (0 takes a free one)"
            ) from error
        shown = f"[{self._host}]" if family == socket.AF_INET6 else self._host
        self.address = f"http://{shown}:{listener.getsockname()[1]}"
        self._warn(listener.getsockname()[0])
        config = uvicorn.Config(
            self._app,
            log_config=None,
            log_level="error",  # of what clients do wrong nothing is logged: a flood of it would fill a disk
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
        """End what clients listen to and stop serving; may be called twice."""
        if self._api is not None:
            self._api.feed.dismiss()
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(_STOP_S)
            self._server = self._thread = None

    def _warn(self, bound: str) -> None:
        """Say what others can do from elsewhere."""
        if is_loopback(bound):
            return
        if self._api is None or not self._api.token.strip():
            log.warning("metrics.listen: %s: there is no token: everybody who can reach it reads all", self.address)
        else:
            log.warning("metrics.listen: %s: the token goes over the network in plain text", self.address)

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
    """The endpoints as an ASGI application that is known as ``host``."""

    def probe(check: Callable[[], tuple[bool, str]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(_: Request) -> Response:
            well, why = check()
            return PlainTextResponse(f"{why}\n", 200 if well else 503)

        return answer

    lately: CostCache[bytes] = CostCache()

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        text = lately.get(content_type, lambda: encode(registry))
        return Response(text, headers={"Content-Type": content_type})

    routes = [
        Route("/-/healthy", probe(healthy), methods=["GET"]),
        Route("/-/ready", probe(ready), methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]
    if api is not None:
        refusals = RejectedCommands("HTTP", api.refused)
        routes += [
            Route("/api/v1/status", status_route(api), methods=["GET"]),
            Route("/api/v1/streams", streams_route(api), methods=["GET"]),
            Route("/api/v1/outputs", outputs_route(api), methods=["GET"]),
            *(Route(f"/api/v1/{action}", command_route(api, action, refusals), methods=["POST"]) for action in Action),
        ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False  # the address of a redirection would be what the client says it is
    return HostGuard(app, host)
