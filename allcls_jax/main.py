"""Trains, or evaluates a checkpoint, and reports. Examples:

allcls train --config vgg19
allcls train --config vgg19:cv --config.data.dir=~/C-NMC_Leukemia --workdir=RUN
allcls evaluate --config vgg19 --workdir=RUN --config.data.dir=OTHER_CELLS
Research use only. Not a medical device.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from allcls_jax import command_line, config_files, config_rules
from allcls_jax.config import Config
from allcls_jax.errors import InputError

_KEPT = "interrupted; what is in the cache is kept for the next run"
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="File, or name, of a configuration, with `:variant` if wanted; each "
    "field of allcls_jax/config.py can be given as --config.section.field=value.",
)
# ml_collections' own loader lets some mistakes pass and wraps others in tracebacks.
flags.FLAGS["config"].parser.parse = config_files.read_file
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate"],
    "Train, or go on, in --workdir; or test its best state on all labelled cells.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; default runs/<config>/<UTC time>."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "This is one of several processes of a run. SLURM, Cloud TPU, Open MPI and "
    "Kubernetes are recognised; elsewhere give the next three flags.",
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process.")

FLAGS = ("mode", "workdir", "distributed", "coordinator", "num_processes", "process_id")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line, program first, and ends the process with its exit code."""
    words = [*(sys.argv if argv is None else argv)]
    run = functools.partial(app.run, _dispatch, words, flags_parser=_parse)
    sys.exit(command_line.run(run, interrupted=_KEPT))


def _parse(argv: Sequence[str]) -> Sequence[str]:
    """Parses flags; every mistake of the user becomes an `InputError`."""
    if {"--help", "-help", "-h"} & set(argv):
        sys.stdout.write(f"{__doc__}\n{flags.FLAGS.module_help(__name__)}\n")
        sys.exit()
    try:
        rest = flags.FLAGS(argv)
    except Exception as error:  # for a bad flag the parsers raise nearly anything
        raise config_files.explain_bad_flag(error, argv) from error
    if unknown := " ".join(rest[1:]):
        raise InputError(f"{unknown}: not understood; flags begin with --")
    if _CONFIG.value is None:
        raise InputError("--config is missing; try --config vgg19")
    return rest


def _dispatch(_: Sequence[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # absl has just raised it
    config: Config = config_rules.validate(_CONFIG.value)
    # JAX takes most of a second, which --help and a typing error need not wait for.
    from allcls_jax.experiments import evaluate, start
    from allcls_jax.training import compilation, inputs, sharding

    compilation.keep_compiled(inputs.cache_dir(config))
    if _WORKDIR.value is None and (_DISTRIBUTED.value or _MODE.value == "evaluate"):
        raise InputError("--workdir is missing; --distributed and evaluation need it")
    if _DISTRIBUTED.value:
        sharding.start_processes(
            _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
        )
    given = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = Path(_WORKDIR.value or config_files.default_workdir(given))
    if _MODE.value == "train":
        start.start(config, workdir)
    else:
        evaluate.evaluate(config, workdir)


if __name__ == "__main__":
    main()
