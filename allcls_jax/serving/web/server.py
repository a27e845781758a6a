"""A server of one application: a socket that is open before anything is computed."""

import asyncio
import errno
import signal
import socket
from types import FrameType

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from allcls_jax.errors import InputError

# Seconds that requests are given to end when the server is told to.
_GRACE = 5
_HEADERS_SECONDS = 30  # for all headers of a request, and between two requests
_MOST_CONNECTIONS = 512  # fewer than the files that a process may usually open


class Server(uvicorn.Server):
    """Ends by SIGINT or SIGTERM as by a word of its user: orderly, without an error."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Ends when what is being answered is done; asked a second time, at once."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


class Protocol(H11Protocol):
    """Ends connections on which no request begins in time."""

    headers_seconds: float = _HEADERS_SECONDS
    _headers_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] -- as uvicorn narrows it
        """A client has come."""
        super().connection_made(transport)
        self._time_headers()

    def data_received(self, data: bytes) -> None:
        """It has sent something, which is not always enough to be a request."""
        super().data_received(data)
        self._time_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has left."""
        super().connection_lost(exc)
        self._stop_timing()

    def _time_headers(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_timing()
        elif self._headers_timer is None:
            self._headers_timer = self.loop.call_later(
                self.headers_seconds, self._give_up
            )

    def _give_up(self) -> None:
        self._headers_timer = None
        if self.conn.their_state is h11.IDLE:
            self.transport.close()

    def _stop_timing(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None


def listen(host: str, port: int) -> socket.socket:
    """Returns an open socket.

    Args:
      host: name or address of this machine.
      port: 0 for a free one.

    Raises:
      InputError: if it cannot be opened.
    """
    try:
        kind, how, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(kind, how, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
            opened.listen(128)
        except OSError:
            opened.close()
            raise
        return opened
    except socket.gaierror as error:
        raise InputError(
            f"--host={host}: is no name or address of this machine; give 127.0.0.1"
        ) from error
    except OSError as error:
        raise _cannot_listen(host, port, error) from error


def make_server(app: ASGIApp) -> Server:
    """Returns a server; `server.run(sockets=[…])` runs it until it is told to end."""
    return Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=_GRACE,
            timeout_keep_alive=_HEADERS_SECONDS,
            http=Protocol,
            limit_concurrency=_MOST_CONNECTIONS,
        )
    )


def _cannot_listen(host: str, port: int, error: OSError) -> InputError:
    if error.errno == errno.EADDRINUSE:
        return InputError(
            f"--port={port}: another program uses it; give another, or 0 for a free one"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return InputError(
            f"--host={host}: is no address of this machine; give 127.0.0.1"
        )
    if error.errno == errno.EACCES:
        return InputError(
            f"--port={port}: this user may not open it; give one above 1023"
        )
    return InputError(f"--host={host} --port={port}: {error.strerror}; give others")
