"""Processes that measure one thing each, so that peers share no threads or memory.

A worker is started with its settings in a file, gets ready (loads, builds, compiles),
says so in a line of JSON, and then measures once for each line that it is asked with.
"""

import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import allcls_jax

# Seconds until a worker that says nothing is ended. Compilers that try out many
# kernels are slow.
_PATIENCE = 3600

_MODULE = "allcls_jax.experiments.benchmark.peers"


class Unavailable(Exception):
    """A peer cannot be measured; the message tells why."""


class Worker:
    """A process that measures; to be used in a `with` block.

    Attributes:
      ready: what it said when it was ready.
    """

    def __init__(self, settings: dict[str, Any]):
        """Starts the process and waits until it is ready.

        Args:
          settings: JSON; `peer` and `task` name what is measured.

        Raises:
          Unavailable: if the peer is not installed or fails.
        """
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(settings, file)
            file.flush()
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, file.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                # `-m` finds the package there, installed or not.
                cwd=Path(allcls_jax.__file__).parents[1],
                text=True,
            )
            try:
                self.ready = self._answer()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Measures once, and returns what came out.

        Raises:
          Unavailable: if it fails.
        """
        assert self._process.stdin is not None, "a pipe was asked for"
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise Unavailable(self._why()) from error
        return self._answer()

    def seconds(self, **request: Any) -> float:
        """Measures once, and returns the seconds."""
        return self.ask(**request)["seconds"]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None, "a pipe was asked for"
        timer = threading.Timer(_PATIENCE, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise Unavailable(self._why())
        answer = json.loads(line)
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        return answer

    def _why(self) -> str:
        """Returns the last line of what the process wrote on its standard error."""
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"failed: {lines[-1] if lines else f'exit code {code}'}"[:300]
