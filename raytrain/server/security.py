"""Who may use the server: one ASGI middleware before everything else.

    Host                  must be a name of this server: another name that leads here (DNS
                          rebinding) is refused
    token                 `Authorization: Bearer TOKEN`, or the cookie that `?token=TOKEN` in an
                          address gives once; compared in constant time
    Origin                of a request that changes something must be this server; only a program
                          with a Bearer token need not send one
    Content-Length        and the body itself are limited
    read-only             requests that change something are refused

`/healthz` alone needs neither name nor token. Every answer has the headers below: a page runs only
scripts of this server, in files; nobody may frame it; and no address is passed on.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raytrain.server.problems import problem
from raytrain.server.settings import ServerSettings

HEALTH = "/healthz"
CHANGES_NOTHING = ("/api/config/check",)
"""Addresses that are asked with POST, and change nothing."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
DOCS = "/docs"
DOCS_POLICY = POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
"""Swagger UI has styles in its elements. Its page shows nothing of a run."""

HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_ASK = (
    "This server needs its token. Open the address that `raytrain serve` printed, with ?token=... "
    "at its end; programs send the header `Authorization: Bearer TOKEN`."
)


class Security:
    """See the module's docstring."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings
        self._token = _digest(settings.token)
        self._names = _LOOPBACK | {name.lower() for name in (settings.host, *settings.names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            policy = DOCS_POLICY if scope["path"] == DOCS else POLICY
            await self._http(scope, receive, _with_headers(send, policy))
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        refusal = None
        if scope["path"] != HEALTH:
            refusal = self._refusal(scope, headers)
        if refusal is None and scope["method"] not in _SAFE:
            body = await self._body(headers, receive)
            if body is None:
                most = self._settings.limits.body_bytes
                refusal = problem(413, f"The body has more than {most:,} bytes.")
            else:
                receive = _replayed(body, receive)
        await (self._app if refusal is None else refusal)(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        host = headers.getlist("host")
        if len(host) != 1 or not self._is_own(host[0]):
            return problem(
                403,
                "The address has a name that is not this server's. Use the address that `raytrain "
                "serve` printed; another name of this machine is given with --name.",
            )
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for key, value in query if key == "token"]
        if given and scope["method"] == "GET":
            return self._entrance(scope, query, given)
        bearer = _bearer(headers)
        if bearer is not None:
            known = self._is_token(bearer)
        else:
            known = any(self._is_token(each) for each in self._cookies(headers))
        if not known:
            return _unauthorized(headers)
        return None if scope["method"] in _SAFE else self._unsafe(scope, headers, host[0], bearer)

    def _unsafe(
        self, scope: Scope, headers: Headers, host: str, bearer: str | None
    ) -> Response | None:
        origins = headers.getlist("origin")
        if not origins and bearer is None:
            return problem(403, "The request has no Origin. Programs send a Bearer token.")
        for origin in origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or parts.netloc.lower() != host.lower():
                return problem(403, "The request comes from a page of another origin.")
        if self._settings.read_only and scope["path"] not in CHANGES_NOTHING:
            return problem(403, "This server was started with --read-only: it changes nothing.")
        return None

    def _entrance(
        self, scope: Scope, query: Iterable[tuple[str, str]], given: list[str]
    ) -> Response:
        """The token in an address becomes a cookie, and leaves the address."""
        if not all(self._is_token(each) for each in given):
            return _unauthorized(Headers(scope=scope))
        rest = urlencode([(key, value) for key, value in query if key != "token"])
        # One slash: an address that begins with two is one of another server.
        place = quote("/" + scope["path"].lstrip("/\\")) + (f"?{rest}" if rest else "")
        answer = RedirectResponse(place, 303)
        answer.set_cookie(
            self._settings.cookie,
            self._settings.token,
            httponly=True,
            samesite="strict",
            path="/",
            secure=scope["scheme"] == "https",
        )
        return answer

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        if name is None or "@" in host:
            return False
        return name in self._names or (self._settings.allow_remote and _is_address(name))

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(_digest(given), self._token)

    def _cookies(self, headers: Headers) -> Iterable[str]:
        for line in headers.getlist("cookie"):
            try:
                morsel = SimpleCookie(line).get(self._settings.cookie)
            except CookieError:
                continue
            if morsel is not None:
                yield morsel.value

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """The body; None if it is too large."""
        most = self._settings.limits.body_bytes
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > most:
            return None
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return bytes(body)
            body += message.get("body", b"")
            if len(body) > most:
                return None
            if not message.get("more_body", False):
                return bytes(body)


def _with_headers(send: Send, policy: str) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["content-security-policy"] = policy
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return sending


def _replayed(body: bytes, receive: Receive) -> Receive:
    waiting: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body}]

    async def receiving() -> Message:
        return waiting.pop() if waiting else await receive()

    return receiving


def _bearer(headers: Headers) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _unauthorized(headers: Headers) -> Response:
    challenge = {"www-authenticate": "Bearer"}
    if "text/html" in headers.get("accept", ""):
        return PlainTextResponse(_ASK, 401, headers=challenge)
    return problem(401, _ASK, headers=challenge)


def _is_address(name: str) -> bool:
    """An address in figures cannot be bound anew to another machine, as a name can."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _digest(token: str) -> bytes:
    # Of one length: a comparison takes the same time for any token.
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()
