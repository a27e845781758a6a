"""The folder of a run: one configuration's, and written by one run at a time."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from allcls_jax import config_files
from allcls_jax.atomic import write_atomically
from allcls_jax.config import Config
from allcls_jax.errors import InputError
from allcls_jax.locking import alone_in

CONFIG_FILE = "config.json"


def check(workdir: Path, config: Config) -> None:
    """Makes sure that a run of this configuration may use the folder.

    Raises:
      InputError: if it holds a run of another configuration, or anything else.
    """
    try:
        if (workdir / CONFIG_FILE).exists():
            changed = config_files.differences(
                config_files.load(workdir / CONFIG_FILE), dataclasses.asdict(config)
            )
            if changed:
                lines = "\n".join(f"  - {line}" for line in changed)
                raise InputError(
                    f"--workdir={workdir} holds a run of another configuration:\n"
                    f"{lines}\nGive another --workdir, or the configuration of that "
                    "run."
                )
        elif workdir.exists() and any(workdir.iterdir()):
            raise InputError(
                f"--workdir={workdir}: holds something that is no run; name a new "
                "folder"
            )
    except OSError as error:
        raise _unusable(workdir, error) from error


@contextlib.contextmanager
def claim(workdir: Path, config: Config) -> Iterator[None]:
    """Makes the folder this run's, and keeps every other run out meanwhile.

    Raises:
      InputError: if it cannot be written, or another run is at work in it.
    """
    with contextlib.ExitStack() as held:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            alone = held.enter_context(alone_in(workdir))
        except OSError as error:
            raise _unusable(workdir, error) from error
        if not alone:
            raise InputError(
                f"--workdir={workdir}: another run is at work there; wait for its end "
                "or name another folder"
            )
        check(workdir, config)
        try:
            write_atomically(workdir / CONFIG_FILE, config.to_json())
        except OSError as error:
            raise _unusable(workdir, error) from error
        yield


def _unusable(workdir: Path, error: OSError) -> InputError:
    return InputError(
        f"--workdir={workdir}: cannot be used ({error.strerror}); name a folder that "
        "can be written"
    )
