"""The gate before every page and answer: who may ask, how many at once, and headers.

A page of another origin can neither ask anything here nor read an answer: requests must
name a host that is ours (no DNS rebinding), posts must come from our own pages or from
programs (no forgery), and no CORS header is ever given.
"""

import asyncio
import contextlib
import ipaddress
import json
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from allcls_jax.serving.web.limits import MIB, Limits, Refused, busy, too_large

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The page that describes the API writes styles into its elements and draws its icons.
_DOCS_POLICY = _POLICY.replace(
    "style-src 'self'", "style-src 'self' 'unsafe-inline'"
).replace("img-src 'self'", "img-src 'self' data:")

# Forms are read as they come; whatever else is sent is small, and soon there.
_FORMS = ("/api/v1/predict", "/api/v1/explain")
_OTHER_BYTES = 4 * MIB
_OTHER_SECONDS = 10.0

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """Lets a request pass to an application, or refuses it.

    Attributes:
      app: what is guarded.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, *, loopback: bool, names: Iterable[str] = ()
    ):
        """Keeps the arguments.

        Args:
          app: what is guarded.
          limits: how many posts are answered at once, and how long they may be.
          loopback: whether only this machine can connect; then it must be asked for as
            such. Else any address of digits will do, as no name server tells these.
          names: further hosts that may be asked for.
        """
        self.app = app
        self._limits = limits
        self._loopback = loopback
        self._names = frozenset(name.lower().rstrip(".") for name in names)
        self._posts = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        docs = scope["path"].startswith("/docs")
        policy = (_DOCS_POLICY if docs else _POLICY).encode()

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    *_HEADERS,
                    (b"content-security-policy", policy),
                ]
            await send(message)

        headers = {name.lower(): value for name, value in scope["headers"]}
        writes = scope["method"] not in ("GET", "HEAD")
        try:
            self._check_origin(headers, writes=writes)
            if writes and self._posts >= self._limits.max_requests:
                raise busy("too many requests are being answered at the moment")
            if scope["path"] in _FORMS:
                body = _Body(receive, self._limits.max_upload, self._limits.timeout)
            else:
                seconds = min(_OTHER_SECONDS, self._limits.timeout)
                body = _Body(receive, _OTHER_BYTES, seconds)
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length[:20]) > body.most:
                raise too_large(body.most)
        except Refused as refused:
            await _send_refusal(refused, send_guarded)
            return
        self._posts += writes
        try:
            if scope["path"] not in _FORMS:
                # What reads JSON would call a refusal a mistake in it.
                await body.read_ahead()
            await _unless_left(self.app(scope, body.receive, send_guarded), body)
        except Refused as refused:
            await _send_refusal(refused, send_guarded)
        finally:
            self._posts -= writes

    def _check_origin(self, headers: Mapping[bytes, bytes], *, writes: bool) -> None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if not self._is_ours(_without_port(host)):
            raise Refused(
                421,
                f"this server is not called {host[:80] or '(nothing)'}",
                "open it under the address that it printed when it was started, or "
                "start it with --allow_name",
            )
        if not writes:
            return
        origin = headers.get(b"origin")
        site = headers.get(b"sec-fetch-site", b"none")
        allowed = (f"http://{host}".encode(), f"https://{host}".encode())
        foreign = origin is not None and origin.lower() not in allowed
        if foreign or site not in (b"same-origin", b"none"):
            raise Refused(
                403,
                "the request comes from a page of another origin",
                "use the page that this server shows, or a program",
            )

    def _is_ours(self, host: str) -> bool:
        if host == "localhost" or host in self._names:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return address.is_loopback or not self._loopback


class _Body:
    """What a client sends: counted, in time, and then the word that it has left."""

    def __init__(self, receive: Receive, most: int, seconds: float):
        self.most = most
        self._receive = receive
        self._seconds = seconds
        self._until = asyncio.get_running_loop().time() + seconds
        self._length = 0
        self._whole = asyncio.Event()
        self._left = asyncio.Event()
        self._ahead: list[Message] = []

    async def receive(self) -> Message:
        """Returns the next message.

        Raises:
          Refused: if it is too long, or late.
        """
        if self._ahead:
            return self._ahead.pop(0)
        if self._whole.is_set():
            await self._left.wait()
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError as error:
            raise Refused(
                408,
                f"the upload took longer than {self._seconds:g} seconds",
                "send less at once, or start the server with a larger --timeout",
            ) from error
        self._length += len(message.get("body", b""))
        if self._length > self.most:
            raise too_large(self.most)
        if not message.get("more_body"):
            self._whole.set()
        return message

    async def read_ahead(self) -> None:
        """Reads all of it, for `receive` to give; raises as it."""
        read = []
        while not self._whole.is_set():
            read.append(await self.receive())
        self._ahead = read

    async def wait_until_left(self) -> None:
        """Returns when all was read and the client does not wait any more."""
        await self._whole.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left.set()


async def _unless_left(answering: Awaitable[None], body: _Body) -> None:
    """Answers, and drops it when the client has left."""
    answer = asyncio.ensure_future(answering)
    left = asyncio.create_task(body.wait_until_left())
    try:
        await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
    finally:
        left.cancel()
        if not answer.done():
            answer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await answer


def refusal(refused: Refused) -> dict[str, Any]:
    """Returns what the client is told."""
    return {"error": refused.what, "remedy": refused.remedy}


def refusal_headers(refused: Refused) -> dict[str, str]:
    """Returns when to try again, if that helps."""
    if refused.retry_after is None:
        return {}
    return {"retry-after": str(refused.retry_after)}


async def _send_refusal(refused: Refused, send: Send) -> None:
    body = json.dumps(refusal(refused)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((a.encode(), b.encode()) for a, b in refusal_headers(refused).items()),
    ]
    if refused.status in (408, 413):  # the rest of it is not read
        headers.append((b"connection", b"close"))
    start = {"type": "http.response.start", "status": refused.status}
    await send({**start, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _without_port(host: str) -> str:
    """Returns the name or address of a Host header."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")
