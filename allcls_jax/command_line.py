"""Command lines: one kind of parser, one way to end, for every verb.

A user's mistake is one line on standard error and exit code 2, never a traceback.
"""

import argparse
import logging
import sys
import textwrap
from collections.abc import Callable
from typing import NoReturn

from allcls_jax import DISCLAIMER
from allcls_jax.errors import InputError, explain_failure

MISTAKE, INTERRUPTED = 2, 130


class Parser(argparse.ArgumentParser):
    """Reads the arguments of one verb of `allcls`, or of all."""

    def __init__(self, verb: str, what: str, example: str):
        """Makes a parser without arguments.

        Args:
          verb: such as `predict`.
          what: it does; stands above the arguments in `--help`.
          example: a whole command, or several lines; stands below them.
        """
        indented = "\n".join(f"  {line}" for line in example.splitlines())
        super().__init__(
            prog=f"allcls {verb}".strip(),
            description="\n\n".join(
                textwrap.fill(part, 79) for part in what.split("\n\n")
            ),
            epilog=f"example:\n{indented}\n\n{DISCLAIMER}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Ends the process: what cannot be read, and where help is, in one line."""
        sys.stderr.write(f"error: {message}; see {self.prog} --help\n")
        sys.exit(MISTAKE)


def run(act: Callable[[], int | None], *, interrupted: str = "interrupted") -> int:
    """Returns the exit code of a command.

    Args:
      act: the command; returns its exit code, or None for 0.
      interrupted: what to tell when the user ends it with Ctrl-C.
    """
    # TFDS recommends another decoder, orbax tells of each of its steps.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        return act() or 0
    except (InputError, OSError) as error:
        if (reason := explain_failure(error)) is None:
            raise
        sys.stderr.write(f"error: {reason}\n")
        return MISTAKE
    except RuntimeError as error:
        if "home directory" not in str(error):  # of pathlib, for ~nobody
            raise
        sys.stderr.write("error: a path begins with ~ and the name of no user here\n")
        return MISTAKE
    except KeyboardInterrupt:
        sys.stderr.write(f"{interrupted}\n")
        return INTERRUPTED
