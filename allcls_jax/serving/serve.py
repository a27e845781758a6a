"""The verb `serve`: a page and an interface on this machine for one model."""

import contextlib
import importlib.util
import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path

import jax

from allcls_jax import DISCLAIMER, terminal
from allcls_jax.command_line import Parser, run
from allcls_jax.errors import InputError
from allcls_jax.serving import arguments
from allcls_jax.serving.model import open_model
from allcls_jax.serving.web.limits import MEMORY, MIB, UNPACKED, Limits
from allcls_jax.training import sharding

_WHAT = """Shows a page on which pictures of single cells, or zips of them, are dropped.
Each gets its calibrated probability, decision, uncertainty, warnings and a heat map;
the table can be sorted, filtered and downloaded. Programs use the JSON interface, which
the page /docs describes. All is served from this machine; pictures stay in memory."""

_EXAMPLE = """allcls serve runs/vgg19/model
allcls serve model.zip --port 9000 --max_upload 512
curl -F files=@cell.bmp http://127.0.0.1:8000/api/v1/predict"""

# The packages of the extra `serve`.
_PACKAGES = ("fastapi", "uvicorn", "python_multipart", "fastapi_offline")

# Pictures that are computed together; a lone one takes the time of so many.
_BATCH_SIZE = {"cpu": 4}


def parser() -> Parser:
    """Returns what reads the arguments."""
    made = Parser("serve", _WHAT, _EXAMPLE)
    add = made.add_argument
    arguments.add_model(made)
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, this machine alone)",
    )
    add(
        "--port",
        type=int,
        default=8000,
        help="0: a free one (default: %(default)s)",
    )
    add(
        "--allow_name",
        metavar="NAME",
        action="append",
        default=[],
        help="a name under which the server may be asked for, besides addresses and "
        "localhost; may be repeated",
    )
    add(
        "--batch_size",
        metavar="N",
        type=int,
        help="pictures that go through the network at once (default: "
        f"{_BATCH_SIZE['cpu']} on a CPU, {arguments.BATCH_SIZE} elsewhere)",
    )
    usual = Limits()
    for name, default, what in (
        ("max_upload", usual.max_upload // MIB, "MiB of one upload"),
        ("max_files", usual.max_files, "pictures of one upload, also in zips"),
        ("max_pixels", usual.max_pixels, "pixels of one picture"),
        ("max_requests", usual.max_requests, "uploads answered at the same time"),
        ("max_kept", usual.max_kept // MIB, "MiB of pictures kept for the page"),
        ("timeout", int(usual.timeout), "seconds for one upload, and for its answer"),
    ):
        add(
            f"--{name}",
            metavar="N",
            type=int,
            default=default,
            help=f"most {what} (default: %(default)s)",
        )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parser().parse_args(argv)

    def act() -> None:
        check_installed()
        serve(
            args.model,
            host=args.host,
            port=args.port,
            names=args.allow_name,
            batch_size=args.batch_size,
            limits=Limits(
                max_upload=args.max_upload * MIB,
                max_memory=MEMORY * args.max_upload * MIB,
                max_unpacked=UNPACKED * args.max_upload * MIB,
                max_pixels=args.max_pixels,
                max_files=args.max_files,
                max_requests=args.max_requests,
                max_kept=args.max_kept * MIB,
                timeout=args.timeout,
            ),
        )

    return run(act, interrupted="stopped")


def check_installed() -> None:
    """Raises InputError if a package that serves is missing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"serve: the packages {', '.join(missing)} are missing; pip install "
            "'allcls-jax[serve]'"
        )


def serve(
    path: Path | str,
    *,
    host: str,
    port: int,
    limits: Limits,
    names: Sequence[str] = (),
    batch_size: int | None = None,
) -> None:
    """Serves a model until SIGINT or SIGTERM.

    Args:
      path: of the model.
      host: address to listen on.
      port: to listen on; 0: a free one, which is told.
      limits: of requests.
      names: under which it may be asked for, besides addresses and localhost.
      batch_size: pictures that go through the network at once; None: as the device is.

    Raises:
      InputError: if there is no such model, it does not compute here what it should,
        or the address cannot be used.
    """
    from allcls_jax.serving.web import app as web
    from allcls_jax.serving.web import server

    if not 0 <= port <= 65535:
        raise InputError(f"--port={port}: must be from 0 to 65535")
    with contextlib.closing(server.listen(host, port)) as opened:
        address, port = opened.getsockname()[:2]
        loopback = ipaddress.ip_address(address).is_loopback
        model = open_model(path, batch_size=batch_size or default_batch_size())
        for note in model.notes:
            terminal.warn(note)
        model.self_check()  # and compiles what is served
        app = web.create_app(
            model,
            limits=limits,
            loopback=loopback,
            names=names if loopback else [*names, socket.gethostname()],
        )
        if not loopback:
            terminal.warn(
                f"--host={host}: every machine that reaches this one can send pictures "
                "and see the model, unencrypted and without a password; use it in a "
                "network that you trust, or give --host 127.0.0.1"
            )
        shown = f"[{address}]" if ":" in address else address
        terminal.say(f"http://{shown}:{port}/ — {DISCLAIMER} Ctrl-C ends it.")
        server.make_server(app).run(sockets=[opened])
    terminal.say("stopped")


def default_batch_size() -> int:
    """Returns how many pictures go through the network at once on these devices."""
    size = _BATCH_SIZE.get(jax.default_backend(), arguments.BATCH_SIZE)
    return sharding.at_least(size)


if __name__ == "__main__":
    raise SystemExit(main())
