"""What stands in front of every answer: whom a server on this machine listens to, and what a browser may do with it."""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})
PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DOCS = (  # its page starts itself with a script of its own
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Guard:
    """ASGI middleware. hosts: the names that a request may call this server by, None for any. A page of another origin
    is refused in any case.

    A page elsewhere cannot read answers of this server, but it could make a browser post to it, or have its own name
    point to this machine; both show in the Host and Origin that the browser sends.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None = None):
        self.app, self.hosts = app, None if hosts is None else {name.lower() for name in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", DOCS if scope["path"] == "/docs" else PAGE)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "no-referrer")
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        if not self._known(Headers(scope=scope)):
            refusal = JSONResponse({"detail": "this server answers only pages and clients of its own address"}, 403)
            return await refusal(scope, receive, dressed)
        await self.app(scope, receive, dressed)

    def _known(self, headers: Headers) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            listed = self.hosts is None or urlsplit(f"//{host}").hostname in self.hosts
            return listed and origin in (None, f"http://{host}", f"https://{host}")
        except ValueError:
            return False
