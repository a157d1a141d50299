"""Status, streams and commands: what is asked of the daemon, and how it is answered.

Commands change something, so they need a token, a POST with JSON in it, and an answer of the daemon's loop.
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
from stream_gru.runtime.http.broadcast import MAX_CLIENTS, OutputBroadcaster
from stream_gru.runtime.http.limits import BoundedConnection, FairLimiter
from stream_gru.runtime.http.sse import EventStream

_ANSWER_S = 2.0
_LIMIT = re.compile(r"[1-9][0-9]{0,4}")
_NOT_SET = "control.token_file is not set"
# While clients have not taken so much yet, long answers are refused.
_UNSENT_BYTES = 8_388_608


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """The daemon at a glance.

    ``counts``  since the process began, by name (received, applied, dropped, resets, ...)
    ``paused``  streams held by name; ``paused_all``: all are held, but for those ``resumed`` since
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
    """One stream: event time of its last sample (ISO 8601), steps since its reset, ``online, silent`` or ``paused``."""

    stream: str
    time: str | None
    steps: int
    status: str


@dataclass(frozen=True, slots=True)
class Api:
    """What the daemon lends to the server.

    ``status`` and ``streams(limit)`` are called in the web thread: they must be quick and safe to call beside the loop.
    Without a ``token`` no command is taken.  ``refused`` is told of each command that does not reach ``commands``: the
    action and a short text without secrets; it is called in the web thread and must neither raise nor wait.
    """

    status: Callable[[], DaemonStatus]
    streams: Callable[[int], Sequence[StreamStatus]]
    feed: OutputBroadcaster
    commands: Commands
    token: str = field(default="", repr=False)
    refused: Callable[[str, str], None] = lambda action, why: None


def status_route(api: Api) -> Callable[[Request], Awaitable[Response]]:
    """``GET /api/v1/status``."""

    async def answer(_: Request) -> Response:
        return _json(200, api.status())

    return answer


def streams_route(api: Api) -> Callable[[Request], Awaitable[Response]]:
    """``GET /api/v1/streams?limit=1000``."""
    turn = FairLimiter()

    async def answer(request: Request) -> Response:
        text = request.query_params.get("limit", "1000")
        if not _LIMIT.fullmatch(text):
            return _told(400, f"limit: expected a number from 1 to 99999, got {text!r:.80}")
        connection: BoundedConnection = request.scope["state"]["connection"]

        def look() -> Response:
            if connection.gone or connection.unsent_bytes() > _UNSENT_BYTES:
                return _told(503, "clients do not take what they asked for: ask again in a moment")
            return _json(200, list(api.streams(int(text))))

        return await turn.do(look)

    return answer


def outputs_route(api: Api) -> Callable[[Request], Awaitable[EventStream | Response]]:
    """``GET /api/v1/outputs``, perhaps ``?stream=NAME``."""

    async def answer(request: Request) -> EventStream | Response:
        stream = request.query_params.get("stream")
        if stream is not None and not STREAM_ID.fullmatch(stream):
            return _told(400, f"stream: expected 1 to 128 of the characters {STREAM_ID.pattern}, got {stream!r:.80}")
        if request.method == "HEAD":
            return Response(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        client = api.feed.subscribe(stream)
        if client is None:
            return _told(503, f"{MAX_CLIENTS} clients are listening already")
        return EventStream(api.feed, client)

    return answer


class _Refused(Exception):
    """A command that is not taken: the answer to it, and why where the log shall say more than the answer."""

    def __init__(self, status: int, text: str, *, why: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(why or text)
        self.answer = _told(status, text, headers)


def command_route(api: Api, action: Action, refusals: RejectedCommands) -> Callable[[Request], Awaitable[Response]]:
    """``POST /api/v1/reset``, ``pause``, ``resume``, ``export``, ``forget`` or ``list``, of one stream or all.

    With ``{"stream": NAME}`` or ``{"all": true}``.  The body of ``import`` is the ``state`` that ``export`` gave;
    ``?replace=1``: also where the stream is known.
    """

    async def answer(request: Request) -> Response:
        try:
            _admit(request, api.token.strip())
            stream, state = await _asked(request, action)
            request.scope["state"]["connection"].spare()
            replace = request.query_params.get("replace") == "1"
            return await _ask(api.commands, partial(Command, action, stream, state=state, replace=replace))
        except _Refused as refused:
            client = f" (from {request.client.host})" if request.client is not None else ""
            refusals.report(str(action), f"{refused}{client}")
            return refused.answer

    return answer


def _admit(request: Request, token: str) -> None:
    """Look at who asks, before anything is read.  Raises _Refused."""
    if not token:
        raise _Refused(403, _NOT_SET)
    if not _authorized(request, token):
        why = "wrong token" if "authorization" in request.headers else "no token"
        text = "expected the header Authorization: Bearer TOKEN"
        raise _Refused(401, text, why=why, headers={"WWW-Authenticate": "Bearer"})
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise _Refused(415, "expected Content-Type: application/json")


async def _asked(request: Request, action: Action) -> tuple[str | None, bytes]:
    """The stream that a request means, None for all, or the state that it brings.  Raises _Refused."""
    try:
        if action is Action.IMPORT:
            return None, await _body(request, MAX_STATE_BYTES)
        return _stream_of(await _body(request, MAX_COMMAND_BYTES), action), b""
    except ValueError as error:
        raise _Refused(400, str(error)) from None
    except ClientDisconnect:  # the server drops the answer
        raise _Refused(400, "the client went away before the end of its body") from None


async def _ask(commands: Commands, build: Callable[..., Command]) -> Response:
    """Give the command to the daemon and wait for what it says.  Raises _Refused when too many wait already."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[CommandResult] = loop.create_future()

    def tell(answer: CommandResult) -> None:
        if not answered.done():  # else nobody waits any more
            answered.set_result(answer)

    def reply(answer: CommandResult) -> None:
        with suppress(RuntimeError):  # the server has stopped meanwhile
            loop.call_soon_threadsafe(tell, answer)

    if not commands.put(build(reply=reply)):
        raise _Refused(503, "too many commands are waiting")
    try:
        async with asyncio.timeout(_ANSWER_S):
            answer = await answered
    except TimeoutError:
        return _told(503, f"no answer within {_ANSWER_S:g} s; the command may still be carried out")
    return _json(200 if answer.ok else 404, answer.as_dict())


def _authorized(request: Request, token: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
    return same and scheme.lower() == "bearer"


async def _body(request: Request, most: int) -> bytes:
    """The body.  Raises _Refused when it is too long, ClientDisconnect when it does not come to its end."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise _Refused(413, f"expected at most {most} bytes")
    return body


def _stream_of(body: bytes, action: Action) -> str | None:
    """The stream a body names, None for all.  Raises ValueError."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError('expected JSON such as {"stream": "pump-7"} or {"all": true}') from None
    if not isinstance(data, dict) or "action" in data:
        raise ValueError('expected an object such as {"stream": "pump-7"} or {"all": true}')
    return parse_command({**data, "action": action.value}, tuple(Action))[1]


def _told(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return _json(status, CommandResult(False, text).as_dict(), headers)


def _json(status: int, data: object, headers: dict[str, str] | None = None) -> Response:
    kept = {"Cache-Control": "no-store", **(headers or {})}
    return Response(orjson.dumps(data), status, kept, "application/json")
