"""The command: `python -m allcls_jax.main --config configs/vgg19.py`.

Reads flags, validates, dispatches; all else is a library.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from allcls_jax import config_files, config_rules
from allcls_jax.config import Config
from allcls_jax.errors import InputError, explain_failure

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="Configuration file, with `:variant` if wanted; each field can be "
    "overridden as --config.section.field=value.",
)
# ml_collections' own loader lets some mistakes pass and wraps others in tracebacks.
flags.FLAGS["config"].parser.parse = config_files.read_file
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate"],
    "train: train in --workdir, or go on there, and evaluate. evaluate: only evaluate "
    "the best checkpoint of --workdir on all labelled cells of the data.",
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


def main() -> None:
    """Runs the command line; ends the process with exit code 2 on a user's mistake."""
    try:
        app.run(_dispatch, flags_parser=_parse)
    except (InputError, OSError) as error:
        if (reason := explain_failure(error)) is None:
            raise
        sys.stderr.write(f"error: {reason}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what is in the cache is kept for the next run\n")
        sys.exit(130)


def _parse(argv: Sequence[str]) -> Sequence[str]:
    """Parses flags; every mistake of the user becomes an `InputError`."""
    if {"--help", "-help", "-h"} & set(argv):
        app.usage(writeto_stdout=True, exitcode=0)
    try:
        rest = flags.FLAGS(argv)
    except Exception as error:  # for a bad flag the parsers raise nearly anything
        raise config_files.explain_bad_flag(error, argv) from error
    if unknown := " ".join(rest[1:]):
        raise InputError(f"{unknown}: not understood; flags begin with --")
    if _CONFIG.value is None:
        raise InputError("--config is missing; try --config configs/vgg19.py")
    return rest


def _dispatch(_: Sequence[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # orbax tells of each of its steps
    config: Config = config_rules.validate(_CONFIG.value)
    # JAX takes most of a second, which --help and a typing error need not wait for.
    from allcls_jax.experiments import evaluate, start
    from allcls_jax.training import compilation, inputs, sharding

    compilation.keep_compiled(inputs.cache_dir(config))
    if _DISTRIBUTED.value:
        if _WORKDIR.value is None:
            raise InputError("--workdir is missing; --distributed needs a shared one")
        sharding.start_processes(
            _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
        )
    if _MODE.value == "train":
        file = config_flags.get_config_filename(flags.FLAGS["config"])
        start.start(config, Path(_WORKDIR.value or config_files.default_workdir(file)))
    elif _WORKDIR.value is None:
        raise InputError("--workdir is missing; --mode=evaluate needs that of a run")
    else:
        evaluate.evaluate(config, Path(_WORKDIR.value))


if __name__ == "__main__":
    main()
