"""How fast a server answers many clients, beside the same work without a server.

`python -m allcls_jax.serving.web.load MODEL`. Rounds of both alternate on the same
machine, so that what else runs there slows both; the server is a process of its own,
asked over loopback only, a bounded number of times.
"""

import argparse
import contextlib
import dataclasses
import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from allcls_jax import terminal
from allcls_jax.command_line import Parser, run
from allcls_jax.config import SyntheticConfig
from allcls_jax.data import synthetic, transforms
from allcls_jax.data.threads import ahead_in_threads
from allcls_jax.errors import InputError
from allcls_jax.serving.model import Model, open_model
from allcls_jax.serving.serve import default_batch_size

_DISTINCT = 16  # pictures; each client sends them in turn
_BOUNDARY = "a-boundary-that-no-picture-has"


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """Pictures a second, the median of the rounds.

    Attributes:
      offline: read in threads and computed in batches, in one process.
      served: by a server, to all clients together.
      ratio: median over rounds of served / offline.
      latency: median seconds from sending a request to its answer.
    """

    offline: float
    served: float
    ratio: float
    latency: float


def measure(
    path: Path | str,
    *,
    clients: int = 32,
    pictures: int = 256,
    per_request: int = 1,
    rounds: int = 3,
    batch_size: int | None = None,
) -> Measured:
    """Measures a model on the devices that are here.

    Args:
      path: of the model.
      clients: that send at the same time, each its next request after an answer.
      pictures: of one round, all clients together.
      per_request: pictures in a request.
      rounds: of each way, in turn; one more of each comes first and is not counted.
      batch_size: of both; None: as the server's own.

    Raises:
      InputError: if there is no such model, or a number is below 1.
      RuntimeError: if the server gives a wrong answer, or does not end in order.
    """
    for name, value in (
        ("clients", clients),
        ("pictures", pictures),
        ("per_request", per_request),
        ("rounds", rounds),
    ):
        if value < 1:
            raise InputError(f"--{name}={value}: must be at least 1")
    size = batch_size or default_batch_size()
    model = open_model(path, batch_size=size)
    encoded = _encoded()
    expected = _offline(model, encoded)
    requests = -(-pictures // per_request)
    bodies = [
        _form([encoded[(at + i) % _DISTINCT] for i in range(per_request)])
        for at in range(_DISTINCT)
    ]
    rows = []
    with (
        _serving(path, size) as port,
        contextlib.closing(_Clients(port, clients, bodies, expected)) as client,
    ):
        for _ in range(rounds + 1):
            begun = time.perf_counter()
            _offline(model, [encoded[at % _DISTINCT] for at in range(pictures)])
            offline = pictures / (time.perf_counter() - begun)
            begun = time.perf_counter()
            latency = client.send(requests)
            served = requests * per_request / (time.perf_counter() - begun)
            rows.append((offline, served, served / offline, latency))
    return Measured(*map(statistics.median, zip(*rows[1:], strict=True)))


def parser() -> Parser:
    """Returns what reads the arguments."""
    made = Parser(
        "",
        __doc__ or "",
        "python -m allcls_jax.serving.web.load runs/vgg16/model --clients 32",
    )
    made.prog = "python -m allcls_jax.serving.web.load"  # no verb
    made.add_argument("model", metavar="MODEL")
    for name, default in (
        ("clients", 32),
        ("pictures", 256),
        ("per_request", 1),
        ("rounds", 3),
    ):
        made.add_argument(f"--{name}", type=int, metavar="N", default=default)
    made.add_argument("--batch_size", type=int, metavar="N")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = parser().parse_args(argv)
    return run(lambda: _show(arguments))


def _show(arguments: argparse.Namespace) -> None:
    options = {
        name: value for name, value in vars(arguments).items() if name != "model"
    }
    found = measure(arguments.model, **options)
    terminal.show_table(
        f"{arguments.clients} clients, {arguments.per_request} pictures a request",
        ("", "pictures/s"),
        [("offline", f"{found.offline:.1f}"), ("served", f"{found.served:.1f}")],
    )
    terminal.say(
        f"served / offline {found.ratio:.2f}; median latency {found.latency:.3f} s"
    )


def _encoded() -> list[bytes]:
    """Returns cells of 450 x 450 pixels as PNG, as they are drawn in training."""
    config = SyntheticConfig(num_images=_DISTINCT, num_patients=_DISTINCT)
    drawn = (synthetic.draw(config, index) for index in range(_DISTINCT))
    return [transforms.encode_png(image) for image in drawn]


def _offline(model: Model, pictures: Sequence[bytes]) -> np.ndarray:
    """Returns the probabilities, (n,), read and computed as fast as it goes."""
    found, waiting = [], []

    def read(data: bytes) -> np.ndarray:
        return model.read(data, name="picture").image

    with ahead_in_threads(read, pictures, ahead=4 * model.batch_size) as images:
        for image in images:
            waiting.append(image)
            if len(waiting) == model.batch_size:
                found.append(model.probabilities(np.stack(waiting)))
                waiting = []
    if waiting:
        found.append(model.probabilities(np.stack(waiting)))
    return np.concatenate(found)


def _form(pictures: Sequence[bytes]) -> bytes:
    head = (
        f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name=files; "
        "filename=cell.png\r\n\r\n"
    ).encode()
    parts = b"".join(head + picture + b"\r\n" for picture in pictures)
    return parts + f"--{_BOUNDARY}--\r\n".encode()


class _Clients:
    """Threads that send requests in turn, each over a connection of its own."""

    def __init__(
        self, port: int, number: int, bodies: Sequence[bytes], expected: np.ndarray
    ):
        self._bodies = bodies
        self._expected = expected
        self._connections = [
            http.client.HTTPConnection("127.0.0.1", port, timeout=600)
            for _ in range(number)
        ]

    def close(self) -> None:
        """Ends the connections."""
        for connection in self._connections:
            connection.close()

    def send(self, requests: int) -> float:
        """Sends so many requests; returns their median latency in seconds."""
        self.close()  # the server has ended what was idle since the last round
        left = iter(range(requests))
        lock = threading.Lock()
        seconds: list[float] = []
        problems: list[BaseException] = []

        def work(connection: http.client.HTTPConnection) -> None:
            try:
                while not problems:
                    with lock:
                        number = next(left, None)
                    if number is None:
                        return
                    begun = time.perf_counter()
                    self._ask(connection, number % _DISTINCT)
                    seconds.append(time.perf_counter() - begun)
            except BaseException as error:
                problems.append(error)

        threads = [
            threading.Thread(target=work, args=(one,)) for one in self._connections
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if problems:
            raise problems[0]
        return statistics.median(seconds)

    def _ask(self, connection: http.client.HTTPConnection, at: int) -> None:
        kind = f"multipart/form-data; boundary={_BOUNDARY}"
        headers = {"Content-Type": kind}
        connection.request("POST", "/api/v1/predict", self._bodies[at], headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {content[:300]!r}")
        for step, row in enumerate(json.loads(content)["rows"]):
            expected = self._expected[(at + step) % _DISTINCT]
            if not abs(row["probability"] - expected) < 1e-4:
                raise RuntimeError(f"{row} instead of {expected}")


@contextlib.contextmanager
def _serving(path: Path | str, batch_size: int) -> Iterator[int]:
    """Gives the port of a server in a process of its own."""
    command = [sys.executable, "-m", "allcls_jax.serving.serve", str(path)]
    options = ["--port", "0", "--batch_size", str(batch_size)]
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            told = next((line for line in process.stdout if line[:7] == "http://"), "")
            if not told:
                raise RuntimeError(f"the server ended with {process.wait()}")
            yield int(told.split("/")[2].rpartition(":")[2])
        finally:
            process.terminate()
        if code := process.wait():
            raise RuntimeError(f"the server ended with {code}")


if __name__ == "__main__":
    raise SystemExit(main())
