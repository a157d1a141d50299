"""The routes for status, streams, outputs and commands.

Commands change state: they need a token, a POST with JSON, and a result from the daemon's loop.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from stream_gru.core.types import STREAM_ID, SinkHealth, SourceHealth
from stream_gru.runtime.control.commands import (
    MAX_COMMAND_BYTES,
    MAX_STATE_BYTES,
    Action,
    Command,
    CommandResult,
    Commands,
    RejectedCommands,
    parse_command,
)
from stream_gru.runtime.http.broadcast import MAX_CLIENTS, EventStream, OutputBroadcaster
from stream_gru.runtime.http.limits import BoundedConnection, FairLimiter

_RESULT_S = 2.0
_LIMIT = re.compile(r"[1-9][0-9]{0,4}")
_NOT_SET = "control.token_file is not set"
# While clients together have this much unread, long responses are rejected.
_UNSENT_BYTES = 8_388_608


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """The response of ``/api/v1/status``.

    ``counts``  since the process started, by name (received, applied, dropped_REASON)
    ``paused``  streams paused by name; ``paused_all``: all are paused except those in ``resumed``
    """

    version: str
    model_id: str
    engine: str
    ready: bool
    uptime_s: float
    streams: int
    sources: dict[str, SourceHealth] = field(default_factory=dict)
    sinks: dict[str, SinkHealth] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    paused: tuple[str, ...] = ()
    paused_all: bool = False
    resumed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """One stream: event time of its last applied sample (ISO 8601) and steps since its reset.

    ``status``: online, idle, paused or, when its latest samples were all dropped, dropping.  ``dropped``: how many of
    its decoded samples were dropped since the process started; ``last_drop``: the reason of the last one.
    """

    stream: str
    time: str | None
    steps: int
    status: str
    dropped: int = 0
    last_drop: str = ""


@dataclass(frozen=True, slots=True)
class Api:
    """What the server needs from the daemon.

    ``status`` and ``streams(limit)`` are called in the server's thread: they must be fast and thread-safe.  Without a
    ``token`` all commands are rejected.  ``rejected`` is called for each command that does not reach ``commands``, as
    in `RejectedCommands`.
    """

    status: Callable[[], DaemonStatus]
    streams: Callable[[int], Sequence[StreamStatus]]
    broadcaster: OutputBroadcaster
    commands: Commands
    token: str = field(default="", repr=False)
    rejected: Callable[[str, str], None] = lambda action, reason: None


def status_route(api: Api) -> Callable[[Request], Awaitable[Response]]:
    """``GET /api/v1/status``."""

    async def respond(_: Request) -> Response:
        return _json(200, api.status())

    return respond


def streams_route(api: Api) -> Callable[[Request], Awaitable[Response]]:
    """``GET /api/v1/streams?limit=1000``."""
    limiter = FairLimiter()

    async def respond(request: Request) -> Response:
        text = request.query_params.get("limit", "1000")
        if not _LIMIT.fullmatch(text):
            return _error(400, f"limit: expected a number from 1 to 99999, got {text!r:.80}")
        connection: BoundedConnection = request.scope["state"]["connection"]

        def collect() -> Response:
            if connection.closing or connection.unsent_bytes() > _UNSENT_BYTES:
                return _error(503, "too many unread responses: try again in a moment")
            return _json(200, list(api.streams(int(text))))

        return await limiter.run(collect)

    return respond


def outputs_route(api: Api) -> Callable[[Request], Awaitable[EventStream | Response]]:
    """``GET /api/v1/outputs``, optionally ``?stream=NAME``."""

    async def respond(request: Request) -> EventStream | Response:
        stream = request.query_params.get("stream")
        if stream is not None and not STREAM_ID.fullmatch(stream):
            return _error(400, f"stream: expected 1 to 128 of the characters {STREAM_ID.pattern}, got {stream!r:.80}")
        if request.method == "HEAD":
            return Response(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        client = api.broadcaster.subscribe(stream)
        if client is None:
            return _error(503, f"expected at most {MAX_CLIENTS} clients of this endpoint; disconnect one")
        return EventStream(api.broadcaster, client)

    return respond


class _Rejected(Exception):
    """A rejected command: ``response`` for the client; ``reason`` for the log where it may know more."""

    def __init__(self, status: int, text: str, *, reason: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(reason or text)
        self.response = _error(status, text, headers)


def command_route(api: Api, action: Action, rejected: RejectedCommands) -> Callable[[Request], Awaitable[Response]]:
    """``POST /api/v1/ACTION`` with ``{"stream": NAME}`` or ``{"all": true}``.

    The body of ``import`` is the ``state`` that ``export`` returned; ``?replace=1`` replaces an existing stream.
    """

    async def respond(request: Request) -> Response:
        try:
            _authorize(request, api.token.strip())
            stream, state = await _arguments(request, action)
            request.scope["state"]["connection"].protect()
            replace = request.query_params.get("replace") == "1"
            return await _execute(api.commands, partial(Command, action, stream, state=state, replace=replace))
        except _Rejected as error:
            client = f" (from {request.client.host})" if request.client is not None else ""
            rejected.report(str(action), f"{error}{client}")
            return error.response

    return respond


def _authorize(request: Request, token: str) -> None:
    """Check the headers before the body is read.  Raises _Rejected."""
    if not token:
        raise _Rejected(403, _NOT_SET)
    if not _authorized(request, token):
        reason = "wrong token" if "authorization" in request.headers else "no token"
        text = "expected the header Authorization: Bearer TOKEN"
        raise _Rejected(401, text, reason=reason, headers={"WWW-Authenticate": "Bearer"})
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise _Rejected(415, "expected Content-Type: application/json")


async def _arguments(request: Request, action: Action) -> tuple[str | None, bytes]:
    """Return the stream of a request, None for all, and the state to import.  Raises _Rejected."""
    try:
        if action is Action.IMPORT:
            return None, await _body(request, MAX_STATE_BYTES)
        return _stream_of(await _body(request, MAX_COMMAND_BYTES), action), b""
    except ValueError as error:
        raise _Rejected(400, str(error)) from None
    except ClientDisconnect:  # the server discards the response
        raise _Rejected(400, "the client disconnected before the end of the body") from None


async def _execute(commands: Commands, build: Callable[..., Command]) -> Response:
    """Queue a command and wait for its result.  Raises _Rejected when the queue is full."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[CommandResult] = loop.create_future()

    def resolve(result: CommandResult) -> None:
        if not future.done():  # else the request timed out
            future.set_result(result)

    def reply(result: CommandResult) -> None:
        with suppress(RuntimeError):  # the server has stopped meanwhile
            loop.call_soon_threadsafe(resolve, result)

    if not commands.put(build(reply=reply)):
        raise _Rejected(503, "too many commands are waiting")
    try:
        async with asyncio.timeout(_RESULT_S):
            result = await future
    except TimeoutError:
        return _error(503, f"no result within {_RESULT_S:g} s; the command may still be executed")
    return _json(200 if result.ok else 404, result.as_dict())


def _authorized(request: Request, token: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
    return same and scheme.lower() == "bearer"


async def _body(request: Request, limit: int) -> bytes:
    """Return the body.  Raises _Rejected when it is too long, ClientDisconnect when the client leaves."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise _Rejected(413, f"expected at most {limit} bytes")
    return body


def _stream_of(body: bytes, action: Action) -> str | None:
    """Return the stream that a body names, None for all.  Raises ValueError."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError('expected JSON such as {"stream": "pump-7"} or {"all": true}') from None
    if not isinstance(data, dict) or "action" in data:
        raise ValueError('expected an object such as {"stream": "pump-7"} or {"all": true}')
    return parse_command({**data, "action": action.value}, tuple(Action))[1]


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return _json(status, CommandResult(False, text).as_dict(), headers)


def _json(status: int, data: object, headers: dict[str, str] | None = None) -> Response:
    all_headers = {"Cache-Control": "no-store", **(headers or {})}
    return Response(orjson.dumps(data), status, all_headers, "application/json")
