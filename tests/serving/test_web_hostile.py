"""Clients that send too much, too slowly, or leave: nobody else notices them."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from allcls_jax.config import SyntheticConfig
from allcls_jax.data import synthetic, transforms
from allcls_jax.serving.model import Model
from allcls_jax.serving.web import guard as web_guard
from allcls_jax.serving.web import server as web_server
from allcls_jax.serving.web.app import create_app
from allcls_jax.serving.web.limits import Limits
from allcls_jax.serving.web.service import Service
from tests.serving.web_client import FORM, ask, form, predict, running

CELL = transforms.encode_png(
    synthetic.draw(SyntheticConfig(num_images=1, num_patients=1), 0)
)


def no_map(*_: Any, **__: Any) -> bytes:
    return CELL


@pytest.fixture(scope="module")
def port(tiny_model: Model) -> Iterator[int]:
    with running(create_app(tiny_model, heat_map=no_map)) as opened:
        yield opened


def half_sent(port: int, head: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    lines = f"POST {head}\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(lines.encode())
    return connection


@pytest.mark.parametrize("path", ["decide", "forget", "nothing"])
@pytest.mark.parametrize("told", [True, False])
def test_json_is_small(port: int, path: str, told: bool):
    body = b" " * (5 << 20)
    with contextlib.closing(half_sent(port, f"/api/v1/{path} HTTP/1.1")) as connection:
        if told:
            connection.sendall(b"Content-Length: %d\r\n\r\n" % len(body))
        else:
            head = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body)
            with contextlib.suppress(OSError):
                connection.sendall(head + body + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_half_sent_json_is_given_up_and_its_place_is_free(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(web_guard, "_OTHER_SECONDS", 0.3)
    limits = Limits(max_requests=2)
    with running(create_app(tiny_model, limits=limits, heat_map=no_map)) as port:
        half = [half_sent(port, "/api/v1/decide HTTP/1.1") for _ in range(2)]
        for connection in half:
            connection.sendall(b"Content-Length: 9\r\n\r\n{")
        for connection in half:
            with contextlib.closing(connection):
                assert connection.recv(1000).startswith(b"HTTP/1.1 408")
        assert predict(port, [("a.png", CELL)]).status == 200


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: loc"])
def test_a_connection_without_a_request_is_ended(
    port: int, sent: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(web_server.Protocol, "headers_seconds", 0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(sent)
        time.sleep(0.15)
        connection.sendall(sent and b"alhost")  # a trickle gains nothing
        begun = time.monotonic()
        assert connection.recv(100) == b""
        assert time.monotonic() - begun < 2


class Slow:
    """A model that computes when it is told to."""

    def __init__(self, model: Model):
        self._model = model
        self.go = threading.Event()
        self.batches = 0
        self.begun = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        self.batches += 1
        self.begun.set()
        self.go.wait(20)
        return self._model.probabilities(images)


def test_nothing_is_computed_or_kept_for_a_client_that_left(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
):
    made: list[Service] = []
    begin = Service.start

    async def start(self: Service) -> None:
        made.append(self)
        await begin(self)

    monkeypatch.setattr(Service, "start", start)
    slow: Any = Slow(tiny_model)
    limits = Limits(max_requests=1)
    with running(create_app(slow, limits=limits, heat_map=no_map)) as port:
        body = form([("a.png", CELL)] * 70, keep="true")  # of 16 in a batch
        connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        head = "POST /api/v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
        head += f"{FORM}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert slow.begun.wait(20)
        connection.close()
        until = time.monotonic() + 5
        while made[0]._memory._held and time.monotonic() < until:
            time.sleep(0.01)
        assert not made[0]._memory._held, "its bytes are given back"
        slow.go.set()
        assert predict(port, [("a.png", CELL)]).status == 200, "its place is free"
        assert slow.batches <= 3, "that of then, what was ready, and the last one's"
        assert not made[0].kept._files


@pytest.mark.parametrize("files", [[CELL], [CELL, CELL], [b"-"], [b"-", CELL]])
def test_a_coverage_that_is_none_is_told_whatever_the_files_are(
    port: int, files: list[bytes]
):
    named = [(f"{at}.png", data) for at, data in enumerate(files)]
    answer = predict(port, named, {"coverage": "0"})
    assert answer.status == 422
    assert "coverage=0" in answer.json["error"]


def test_several_failures_at_once_are_told_as_one(tiny_model: Model):
    slow: Any = Slow(tiny_model)
    slow.probabilities = lambda images: 1 / 0
    with running(create_app(slow, heat_map=no_map)) as port:
        answer = predict(port, [("a.png", CELL), ("b.png", CELL)])
    assert answer.status == 500
    assert "ZeroDivisionError" in answer.json["error"]


def test_many_decisions_are_those_of_predictions(tiny_model: Model):
    service = Service(tiny_model, Limits())
    given = [*np.random.default_rng(1).uniform(size=200).tolist(), 0.0, 1.0]
    found = service.decide(given, "0.3", 0.7)["rows"]
    cell = tiny_model.read(CELL, name="x")
    for probability, row in zip(given, found, strict=True):
        one = tiny_model.prediction("", cell, probability, threshold=0.3, coverage=0.7)
        assert row == {name: getattr(one, name) for name in row}
        assert row["decision"] == ("ALL" if probability > 0.3 else "HEM")
    assert {row["abstain"] for row in found} == {True, False}


def test_many_decisions_take_no_time_from_others(port: int):
    body = json.dumps({"probabilities": [0.4] * 100_000}).encode()
    begun = time.process_time()
    answer = ask(port, "/api/v1/decide", body, content_type="application/json")
    assert len(answer.json["rows"]) == 100_000
    assert time.process_time() - begun < 3
    more = body.replace(b"]", b", 0.4]")
    refused = ask(port, "/api/v1/decide", more, content_type="application/json")
    assert refused.status == 422


def test_decisions_are_not_made_on_the_loop(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
):
    seen: list[bool] = []

    def decide(self: Service, *_: Any) -> dict[str, Any]:
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            seen.append(True)
        return {}

    monkeypatch.setattr(Service, "decide", decide)
    with running(create_app(tiny_model, heat_map=no_map)) as port:
        body = b'{"probabilities": []}'
        ask(port, "/api/v1/decide", body, content_type="application/json")
    assert seen == []
