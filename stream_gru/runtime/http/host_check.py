"""Which names the server answers to.

A page of a hostile site can let its own name point to 127.0.0.1 and then read what is served there as if it were its
own (DNS rebinding).  Its requests carry that name in ``Host``, so names that are not ours are refused; an address
written as a number cannot be such a name.
"""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_LOOPBACK = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})
_REFUSED = "this name is not served: use an IP address or localhost\n"


class HostGuard:
    """Answers 403 to requests for other names than those of loopback and ``host``; probes are let through."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._names = _LOOPBACK | {host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "http" and not _is_probe(scope["path"]) and not self._ours(Headers(scope=scope)):
            refusal = PlainTextResponse(_REFUSED, 403)
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _ours(self, headers: Headers) -> bool:
        name = _name(headers.get("host", "").strip().lower())
        return name in self._names or _is_address(name)


def is_loopback(address: str) -> bool:
    """Whether an IP address is reached from this machine only."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _is_probe(path: str) -> bool:
    return path == "/metrics" or path.startswith("/-/")


def _name(host: str) -> str:
    """The host without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
