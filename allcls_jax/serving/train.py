"""The verbs `train` and `evaluate`: the flags of `allcls_jax.main`, and their names."""

from collections.abc import Sequence
from typing import NoReturn

from allcls_jax import config_files
from allcls_jax import main as entry
from allcls_jax.command_line import Parser
from allcls_jax.config_rules import field_names


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Trains, or evaluates with `--mode=evaluate`, and ends the process."""
    entry.main(None if argv is None else ["allcls train", *argv])


def parser() -> Parser:
    """Returns a reader of the same flags, from which a shell learns their names."""
    parser = Parser("train", entry.__doc__ or "", "allcls train --config vgg19")
    parser.add_argument("--config", choices=config_files.own_names())
    for flag in entry.FLAGS:
        parser.add_argument(f"--{flag}")
    for field in field_names():
        parser.add_argument(f"--config.{field}")
    return parser
