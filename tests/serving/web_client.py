"""A server in a thread and a client on its wire, for the tests of the page."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from allcls_jax.serving.web import server as web_server

BOUNDARY = "a-boundary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextlib.contextmanager
def running(app: Any) -> Iterator[int]:
    """Gives the port of a server of an application."""
    with contextlib.closing(web_server.listen("127.0.0.1", 0)) as opened:
        server = web_server.make_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield opened.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def ask(
    port: int,
    path: str,
    body: bytes | None = None,
    method: str | None = None,
    **headers: str,
) -> Answer:
    """Sends a request; a POST if it has a body. `_` stands for `-` in names."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(
            method or ("GET" if body is None else "POST"), path, body, named
        )
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, found, answer.read())


def form(files: Sequence[tuple[str, bytes]], **fields: str) -> bytes:
    """Returns a form with files (name, content) and other fields."""
    disposition = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name="
    parts = [
        f'{disposition}"files"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in files
    ]
    parts += [
        f'{disposition}"{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def predict(
    port: int, files: Sequence[tuple[str, bytes]], fields: dict[str, str] | None = None
) -> Answer:
    """Sends files to the interface."""
    body = form(files, **(fields or {}))
    return ask(port, "/api/v1/predict", body, content_type=FORM)


def upload(page: Any, folder: Path, *names: str) -> None:
    """Chooses files on the page, a `playwright.sync_api.Page`, and waits for rows."""
    page.set_input_files("#files", [folder / name for name in names])
    page.wait_for_selector("#rows tr")
    page.wait_for_selector("#progress", state="hidden")
