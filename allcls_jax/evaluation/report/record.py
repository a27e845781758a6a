"""What a folder holds of its run, a missing piece being a reason and not an error.

A folder with neither `results.json` nor `ladder.json` is no run. Of everything else a
reader is told why it is not there.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from allcls_jax.data import partition_file
from allcls_jax.errors import InputError
from allcls_jax.evaluation import predictions
from allcls_jax.evaluation.predictions import Predictions
from allcls_jax.training.writers import METRICS_FILE, Record, read_history

RUN, CROSS_VALIDATION, LADDER = "run", "cross_validation", "ladder"

_AGAIN = "run the same command with --workdir again to have it written"
_EVALUATION = "evaluation.json"
_BASELINES = "allcls baselines WORKDIR makes it"
_LEAK_LADDER = (
    "allcls train --config vgg19:ladder makes it, with a folder for each split"
)

# What a file of another shape raises where it is read.
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError)


class Missing(Exception):
    """A piece of a run's record is not there; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Folder:
    """The record of one run, cross-validation or ladder.

    Attributes:
      path: of the folder.
      kind: RUN, CROSS_VALIDATION or LADDER.
      results: of `results.json`; of `ladder.json` for a ladder.
      detail: the folder that single figures are of: this one, or, of a ladder, the
        first rung that does not leak.
    """

    path: Path
    kind: str
    results: dict[str, Any]
    detail: "Folder | None" = None

    @property
    def name(self) -> str:
        """What to call it: the folder's own name and its parent's."""
        return "/".join(self.path.absolute().parts[-2:])

    @property
    def notes(self) -> list[str]:
        """What a reader must know of the run before any figure."""
        found = [str(note) for note in self.results.get("notes") or []]
        if self.detail is not None:
            found += [note for note in self.detail.notes if note not in found]
        return found

    def result(self, *keys: str) -> Any:
        """Returns an entry of `results.json`, or raises Missing."""
        return _entry(self.results, keys, "results.json")

    def evaluation(self, *keys: str) -> Any:
        """Returns an entry of `evaluation.json`, or raises Missing."""
        return _entry(self._json(_EVALUATION, _AGAIN), keys, _EVALUATION)

    def config(self) -> dict[str, Any]:
        """Returns every setting of the run, or raises Missing."""
        return self._json("config.json", _AGAIN)

    def baselines(self) -> dict[str, Any]:
        """Returns the baselines that were run beside it, or raises Missing."""
        return self._json("baselines.json", _BASELINES)

    def ladder(self) -> dict[str, Any]:
        """Returns the ladder of leaks that the run belongs to, or raises Missing."""
        if self.kind == LADDER:
            return self.results
        above = self.path.absolute().parent / "ladder.json"
        if not (self.path / "ladder.json").exists() and above.exists():
            # A rung's page shows the ladder it stands in, and no other.
            rungs = _read_json(above).get("rungs") or []
            if any(rung.get("key") == self.path.absolute().name for rung in rungs):
                return _read_json(above)
        return self._json("ladder.json", _LEAK_LADDER)

    def predictions(self) -> Predictions:
        """Returns the table of predictions, or raises Missing."""
        path = self.path / "predictions.csv"
        if not path.exists():
            raise Missing(f"there is no predictions.csv; {_AGAIN}")
        try:
            return predictions.read(path)
        except InputError as error:
            raise Missing(in_one_line(error)) from error

    def runs(self) -> list[tuple[str, Path]]:
        """Returns name and folder of each trained model."""
        if self.kind == RUN:
            return [("", self.path)]
        rows = self.results.get("runs") or []
        return [(str(row["folder"]), self.path / str(row["folder"])) for row in rows]

    def histories(self) -> dict[str, list[Record]]:
        """Returns the epochs of each trained model, or raises Missing."""
        found = {name: read_history(path) for name, path in self.runs()}
        found = {name: history for name, history in found.items() if history}
        if not found:
            raise Missing(f"there is no {METRICS_FILE}: nothing was trained here")
        return found

    def partition(self) -> list[dict[str, str]]:
        """Returns the rows of `partition.csv`, of all models, or raises Missing."""
        found = [
            path
            for _, path in self.runs()
            if (path / partition_file.PARTITION_FILE).exists()
        ]
        if not found:
            raise Missing("there is no partition.csv")
        try:
            return [row for path in found for row in partition_file.read(path)]
        except InputError as error:
            raise Missing(in_one_line(error)) from error

    def _json(self, file: str, remedy: str) -> dict[str, Any]:
        if not (self.path / file).exists():
            raise Missing(f"there is no {file}; {remedy}")
        return _read_json(self.path / file)


def read(path: Path) -> Folder:
    """Returns the record of a folder.

    Raises:
      InputError: if it holds no finished run, or its files cannot be read.
    """
    if (path / "results.json").exists():
        results = _read_json(path / "results.json")
        kind = str(results.get("kind") or RUN)
        if kind not in (RUN, CROSS_VALIDATION):
            raise InputError(
                f"{path / 'results.json'}: kind = {kind!r} must be {RUN!r} or "
                f"{CROSS_VALIDATION!r}; name the folder of a run"
            )
        return Folder(path, kind, results)
    if (path / "ladder.json").exists():
        ladder = _read_json(path / "ladder.json")
        with damaged(path / "ladder.json"):
            honest = [rung["key"] for rung in ladder["rungs"] if not rung.get("leaky")]
        for key in honest:
            if (path / str(key) / "results.json").exists():
                return Folder(path, LADDER, ladder, read(path / str(key)))
        return Folder(path, LADDER, ladder)
    if (path / "config.json").exists():
        raise InputError(
            f"{path}: its run has not finished (there is no results.json); {_AGAIN}"
        )
    raise InputError(
        f"{path}: holds no run (there is no results.json); name a folder that "
        "training, cross-validation or the leak ladder has written"
    )


def in_one_line(error: Exception) -> str:
    """Returns what an error says, the list of its problems left out."""
    first, *others = str(error).splitlines()
    return first if not others else f"{first}, such as {others[0].strip(' -')}"


def attempt(build: Callable[[], Any]) -> tuple[Any, str]:
    """Returns (what a function builds, ""), or (None, why a piece is missing)."""
    try:
        return build(), ""
    except Missing as error:
        return None, str(error)


@contextlib.contextmanager
def damaged(path: Path | str) -> Iterator[None]:
    """Turns what a file of another shape raises into an `InputError` that names it."""
    try:
        yield
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(
            f"{path}: does not hold what this version of the package writes "
            f"({type(error).__name__}: {error}); {_AGAIN}"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {_AGAIN}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object; {_AGAIN}")
    return content


def _entry(content: Any, keys: Sequence[str], file: str) -> Any:
    for depth, key in enumerate(keys, 1):
        if not isinstance(content, dict) or content.get(key) is None:
            name = ".".join(keys[:depth])
            raise Missing(f"{file} holds no {name}")
        content = content[key]
    return content
