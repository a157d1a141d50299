"""The server: its routes, and uvicorn in a thread of its own.

    GET  /metrics, /-/healthy, /-/ready
    GET  /api/v1/status, /api/v1/streams, /api/v1/outputs     where there is an `Api`
    POST /api/v1/reset, /api/v1/pause, /api/v1/resume

Limits keep a slow or greedy client from harming the daemon: few connections, each for a few seconds and one request;
only those who listen to outputs stay, and they are few.
"""

from __future__ import annotations

import asyncio
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
from uvicorn.protocols.http.h11_impl import H11Protocol

from stream_gru.control import Action
from stream_gru.control.refusals import Refusals
from stream_gru.errors import ConfigError
from stream_gru.web.api import ONCE, Api, command_route, outputs_route, status_route, streams_route
from stream_gru.web.hosts import HostGuard

_MAX_CONNECTIONS = 16
_IDLE_S = 5
_STOP_S = 2.0
# What the kernel holds for one who listens and does not read.
_UNREAD_BYTES = 65_536
_LISTEN = re.compile(r"(?P<host>\[[0-9a-fA-F:]+\]|[^:\s]+):(?P<port>\d{1,5})")


class _BoundedConnection(H11Protocol):
    """A connection that has not got its answer in time is closed: else a few silent clients would keep others out."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to count the time; the application finds this connection in its request's state."""
        super().connection_made(transport)
        self._end = self.loop.call_later(_IDLE_S, transport.abort)
        self.app_state = {**self.app_state, "connection": self}

    def keep(self) -> None:
        """Let this connection live on, with little memory for what its client does not read."""
        self._end.cancel()
        listener = self.transport.get_extra_info("socket")
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD_BYTES)

    def abort(self) -> None:
        """Cut it off."""
        self.transport.abort()


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
            listener.listen(_MAX_CONNECTIONS)
        except OSError as error:
            listener.close()
            raise ConfigError(
                f"metrics.listen: {self._host}:{self._port} cannot be had: {error.strerror};"
                " choose another port (0 takes a free one)"
            ) from error
        shown = f"[{self._host}]" if family == socket.AF_INET6 else self._host
        self.address = f"http://{shown}:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            self._app,
            log_level="warning",
            access_log=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=1,
            lifespan="off",
            server_header=False,
            ws="none",
            http=_BoundedConnection,
            loop="asyncio",
        )
        self._server = uvicorn.Server(config)
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
            return PlainTextResponse(f"{why}\n", 200 if well else 503, ONCE)

        return answer

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type, **ONCE})

    routes = [
        Route("/-/healthy", probe(healthy), methods=["GET"]),
        Route("/-/ready", probe(ready), methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]
    if api is not None:
        refusals = Refusals("HTTP", api.refused)
        routes += [
            Route("/api/v1/status", status_route(api), methods=["GET"]),
            Route("/api/v1/streams", streams_route(api), methods=["GET"]),
            Route("/api/v1/outputs", outputs_route(api), methods=["GET"]),
            *(Route(f"/api/v1/{action}", command_route(api, action, refusals), methods=["POST"]) for action in Action),
        ]
    return HostGuard(Starlette(routes=routes), host)
