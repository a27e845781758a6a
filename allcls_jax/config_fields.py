"""The fields of a configuration by dotted name: compared, read back, looked up."""

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allcls_jax.config import Config
from allcls_jax.errors import InputError

# Fields that change where or how fast a run is computed, never what it computes: a
# workdir may be resumed with other values of these.
RUNTIME_FIELDS = frozenset({"cache_dir", "data.dir", "data.num_workers"})


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns `{"data.limit": value, …}` of a nested configuration dictionary."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def differences(
    old: dict[str, Any],
    new: dict[str, Any],
    *,
    ignore: frozenset[str] = RUNTIME_FIELDS,
    only: tuple[str, ...] = ("",),
) -> list[str]:
    """Returns a line `field: old → new` for each field that differs.

    Args:
      old: a configuration as nested dictionary, as read from JSON.
      new: the other one.
      ignore: full names of fields that may differ.
      only: prefixes of full names; other fields are left out.
    """
    # A pass through JSON makes tuples lists and enums strings on both sides.
    before = flatten(json.loads(json.dumps(old)))
    after = flatten(json.loads(json.dumps(new)))
    absent = "(no such field)"
    return [
        f"{name}: {before.get(name, absent)!r} → {after.get(name, absent)!r}"
        for name in dict.fromkeys([*before, *after])
        if name.startswith(only)
        and name not in ignore
        and before.get(name, absent) != after.get(name, absent)
    ]


def field_names(kind: type = Config, prefix: str = "") -> Iterator[str]:
    """Yields the dotted name of each field, sections included."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = prefix + field.name
        yield name
        if dataclasses.is_dataclass(hints[field.name]):
            yield from field_names(hints[field.name], f"{name}.")


def nearest_field(name: str) -> str | None:
    """Returns the field whose dotted name is most like a misspelt one, if any is."""
    names = list(field_names())
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not close:
        last = name.rpartition(".")[2]
        tails = {known.rpartition(".")[2]: known for known in names}
        close = [tails[tail] for tail in difflib.get_close_matches(last, tails, n=1)]
    return close[0] if close else None


def load(path: Path) -> dict[str, Any]:
    """Returns the nested dictionary in a workdir's `config.json`.

    Raises:
      InputError: if the file is missing or no JSON object.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as a run's configuration ({error}); give a "
            "--workdir that training has written"
        ) from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: must hold a JSON object")
    return tree
