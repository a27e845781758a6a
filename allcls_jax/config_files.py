"""Configurations as a user hands them over: files, flags and a run's JSON.

Whatever is wrong with one becomes an `InputError` that names the file or the flag.
"""

import ast
import contextlib
import copy
import dataclasses
import datetime
import enum
import importlib.machinery
import json
import re
import traceback
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from allcls_jax.config import Config
from allcls_jax.config_rules import field_names, misfits, nearest_field
from allcls_jax.errors import InputError

# Fields that change where or how fast a run is computed, never what it computes: a
# workdir may be resumed with other values of these.
RUNTIME_FIELDS = frozenset(
    {
        "cache_dir",
        "data.dir",
        "data.num_workers",
        "train.checkpoint_seconds",
        "train.forward_batch_size",
        "train.keep",
    }
)


def read_file(argument: str) -> Config:
    """Returns the configuration that `FILE` or `FILE:VARIANT` describes.

    `vgg19` alone, or `vgg19:VARIANT`, names a configuration of this package.

    Whether it can work is not asked: flags may still change its fields.

    Raises:
      InputError: if the file cannot be run, or its `get_config` gives no `Config`, or
        one with unknown fields or values of another type.
    """
    file, variant = _file_and_variant(argument)
    if not Path(file).is_file():
        own = ", ".join(own_names())
        raise InputError(
            f"--config={argument}: there is no file {file}; give a file, or one of "
            f"the package's: {own}"
        )
    loader = importlib.machinery.SourceFileLoader("config_file", file)
    module = types.ModuleType(loader.name)
    module.__file__ = file
    try:
        loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        config = get_config(*variant) if callable(get_config) else None
    except Exception as error:  # the user's own code: it may raise anything
        lines = [
            f"line {frame.lineno}: "
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == file
        ]
        raise InputError(
            f"--config={argument}: {''.join(lines[-1:])}{type(error).__name__}: "
            f"{_reason(error)}"
        ) from error
    if not callable(get_config):
        raise InputError(
            f"--config={argument}: has no function get_config; see configs/vgg19.py"
        )
    if not isinstance(config, Config):
        raise InputError(
            f"--config={argument}: get_config must return a Config of "
            f"allcls_jax.config, and returns {config!r}"
        )
    if problems := list(misfits(config)):
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise InputError(f"--config={argument}: cannot work:\n{lines}")
    return config


def explain_bad_flag(error: BaseException, argv: Sequence[str]) -> InputError:
    """Returns what to tell of a command line that could not be parsed.

    Args:
      error: what the parser raised: of a configuration file the `InputError` of
        `read_file`, however wrapped.
      argv: the command line.
    """
    for cause in _causes(error):
        if isinstance(cause, InputError):
            return cause
    known = set(field_names())
    for argument in argv[1:]:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in known:
            nearest = nearest_field(match[1])
            hint = f"; did you mean --config.{nearest}?" if nearest else ""
            return InputError(f"--config.{match[1]}: no such field{hint}")
    return InputError(f"the command line cannot be read: {_reason(error)}")


def override(config: Config, setting: str) -> Config:
    """Returns a copy with one field set, as `section.field=value` says.

    The value is written as in JSON or Python, such as `3e-5`, `true`, `None` or
    `[["dense.*", true]]`; text and choices stand without quotation marks.

    Raises:
      InputError: if there is no such field, or the value is not of its type.
    """
    name, equals, text = (part.strip() for part in setting.partition("="))
    if not equals:
        raise InputError(
            f"{setting!r}: must be section.field=value, such as "
            "optim.learning_rate=3e-5"
        )
    changed: Any = copy.deepcopy(config)
    section = changed
    *path, last = name.split(".")
    for part in path:
        section = getattr(section, part, None)
    hints = typing.get_type_hints(type(section))
    if last not in hints or dataclasses.is_dataclass(hints[last]):
        nearest = nearest_field(name)
        hint = f"; did you mean {nearest}?" if nearest else ""
        raise InputError(f"{setting}: no such field{hint}")
    setattr(section, last, _parse(hints[last], text))
    if problems := list(misfits(changed)):
        raise InputError(problems[0])
    return changed


def _parse(kind: Any, text: str) -> Any:
    """Returns text as a value of a field's type; as it is, where it cannot be."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if types.NoneType in options and text in ("None", "null"):
        return None
    if str in options:
        return text
    value: Any = text
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError):
            value = read(text)
            break
    whole = isinstance(value, int) and not isinstance(value, bool)
    if float in options and whole:
        return float(value)
    with contextlib.suppress(ValueError):
        return _build(kind, value)
    return value


def default_workdir(argument: str) -> Path:
    """Returns runs/<file>-<variant>/<UTC time> of what `--config` was given."""
    file, variant = _file_and_variant(argument)
    now = datetime.datetime.now(datetime.UTC)
    name = "-".join([Path(file).stem, *variant])
    return Path("runs") / name / now.strftime("%Y-%m-%dT%H-%M-%SZ")


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
    before, after = (flatten(json.loads(json.dumps(each))) for each in (old, new))
    for each in (before, after):
        # Where the file lies may change, whom it names may not.
        if without := each.get("data.without"):
            each["data.without"] = re.sub(r"^.*(?=@sha256:)", "", without)
    absent = "(no such field)"
    return [
        f"{name}: {before.get(name, absent)!r} → {after.get(name, absent)!r}"
        for name in dict.fromkeys([*before, *after])
        if name.startswith(only)
        and name not in ignore
        and before.get(name, absent) != after.get(name, absent)
    ]


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


def read_run(path: Path) -> Config:
    """Returns the configuration in a workdir's `config.json`, of this version's fields.

    Raises:
      InputError: if the file is missing, or was written by a version with other fields.
    """
    tree = load(path)
    try:
        config = _build(Config, tree)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: was not written by this version ({error}); train again, or use "
            "the version that wrote it"
        ) from error
    if problems := list(misfits(config)):
        raise InputError(f"{path}: was not written by this version ({problems[0]})")
    return config


def _build(kind: Any, value: Any) -> Any:
    """Returns a JSON value as the type of a field; ValueError if it cannot be."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            wrong = value.keys() ^ hints.keys() if isinstance(value, dict) else ()
            raise ValueError(f"fields that do not fit: {', '.join(sorted(wrong))}")
        # Calling a dataclass type is all that pyright cannot see here.
        make: Any = kind
        return make(**{name: _build(hints[name], value[name]) for name in hints})
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and types.NoneType in options:
        return None
    for option in options:
        if isinstance(option, type) and issubclass(option, enum.Enum):
            return option(value)
    return _tuples(value) if isinstance(value, list) else value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def own_names() -> list[str]:
    """Returns the names of the package's own configurations."""
    return sorted(path.stem for path in _own_folder().glob("[a-z]*.py"))


def _own_folder() -> Path:
    """Returns where they lie: in a wheel within the package, else beside it."""
    package = Path(__file__).resolve().parent
    within = package / "configs"
    return within if within.is_dir() else package.parent / "configs"


def _file_and_variant(argument: str) -> tuple[str, list[str]]:
    """Divides `FILE:VARIANT`; without a variant the list is empty."""
    file, _, variant = argument.partition(":")
    if file in own_names() and not Path(file).is_file():
        file = str(_own_folder() / f"{file}.py")
    return file, [variant] if variant else []


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an exception and those that led to it, the latest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    """What an exception says, in one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
