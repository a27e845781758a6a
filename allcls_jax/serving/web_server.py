"""A server of one application: a socket that is open before anything is computed."""

import errno
import signal
import socket
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from allcls_jax.errors import InputError

# Seconds that requests are given to end when the server is told to.
_GRACE = 5


class Server(uvicorn.Server):
    """Ends by SIGINT or SIGTERM as by a word of its user: orderly, without an error."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Ends when what is being answered is done; asked a second time, at once."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


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
            timeout_keep_alive=30,
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
