"""The verb `serve`: a process that begins, tells its address, and ends when told."""

import http.client
import importlib.util
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from allcls_jax import DISCLAIMER, terminal
from allcls_jax.errors import InputError
from allcls_jax.serving import serve
from allcls_jax.serving.web import load as web_load
from allcls_jax.serving.web import server as web_server
from allcls_jax.serving.web.limits import Limits


class Process:
    """A server of its own, and what it has said."""

    def __init__(self, model: Path, *options: str):
        self.said: list[str] = []
        command = [sys.executable, "-m", "allcls_jax.serving.serve", str(model)]
        self.popen = subprocess.Popen(
            [*command, "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for_address(self) -> tuple[str, int]:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.said.append(line)
            if line.startswith("http://"):
                host, _, port = line.split("/")[2].rpartition(":")
                return host, int(port)
        raise AssertionError("".join(self.said))

    def end(self, sign: signal.Signals) -> int:
        self.popen.send_signal(sign)
        out, _ = self.popen.communicate(timeout=60)
        self.said.append(out)
        return self.popen.returncode


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    begun: list[Process] = []
    yield begun
    for process in begun:
        process.popen.kill()
        process.popen.communicate()


def test_it_tells_its_address_and_ends_orderly(
    tiny_model_dir: Path, processes: list[Process]
):
    # SIGTERM is what ends the server of `web_load`, below.
    process = Process(tiny_model_dir, "--host", "0.0.0.0")
    processes.append(process)
    _, port = process.wait_for_address()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/api/v1/model")
    found = json.loads(connection.getresponse().read())
    assert found["disclaimer"] == DISCLAIMER
    # The open connection keeps nobody from ending.
    assert process.end(signal.SIGINT) == 0
    connection.close()
    said = "".join(process.said)
    assert DISCLAIMER in said
    assert "synthetic cells" in said
    assert "--host=0.0.0.0: every machine" in said
    assert "without a password" in said
    assert "Traceback" not in said
    assert said.endswith("stopped\n")


def test_a_port_in_use_is_told_before_anything_is_computed(
    capsys: pytest.CaptureFixture[str],
):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert serve.main(["no/such/model", "--port", str(port)]) == 2
    assert f"--port={port}: another program uses it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no/such/model", "--port", "0"], "no/such/model: holds no model"),
        (["model", "--port", "70000"], "--port=70000: must be from 0 to 65535"),
        (["model", "--host", "192.0.2.7", "--port", "0"], "--host=192.0.2.7: is no"),
        (["model", "--host", "no.such.host.invalid"], "--host=no.such.host.invalid"),
        (["model", "--max_files", "0"], "--max_files=0: must be above 0"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
):
    assert serve.main(words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_missing_packages_are_named_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "uvicorn" else found(name, *rest),
    )
    assert serve.main(["model"]) == 2
    error = capsys.readouterr().err
    assert "uvicorn" in error
    assert "fastapi" not in error
    assert "pip install 'allcls-jax[serve]'" in error


def test_a_batch_is_divided_among_the_devices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serve.jax, "local_device_count", lambda: 3)
    assert serve.default_batch_size() % 3 == 0


def test_a_second_interrupt_does_not_wait():
    server = web_server.make_server(lambda *_: None)  # pyright: ignore[reportArgumentType] -- never called
    server.handle_exit(signal.SIGINT, None)
    assert server.should_exit
    assert not server.force_exit
    server.handle_exit(signal.SIGINT, None)
    assert server.force_exit


def test_a_damaged_model_is_not_served(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    def differs(_: object) -> float:
        raise InputError("its check cells give other outputs")

    monkeypatch.setattr("allcls_jax.serving.model.Model.self_check", differs)
    monkeypatch.setattr(terminal, "warn", lambda text: None)
    with pytest.raises(InputError, match="other outputs"):
        serve.serve(tiny_model_dir, host="127.0.0.1", port=0, limits=Limits())


def test_load_is_measured_beside_the_same_work_without_a_server(tiny_model_dir: Path):
    found = web_load.measure(
        tiny_model_dir, clients=4, pictures=16, per_request=2, rounds=1
    )
    assert found.ratio == pytest.approx(found.served / found.offline)
    assert 0 < found.latency < 60
    with pytest.raises(InputError, match="clients=0"):
        web_load.measure(tiny_model_dir, clients=0)
