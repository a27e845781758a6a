"""From a configuration to the experiment that it asks for."""

from pathlib import Path

from allcls_jax.config import Config, ExperimentKind
from allcls_jax.experiments.cross_validation import cross_validate
from allcls_jax.experiments.leak_ladder import climb
from allcls_jax.experiments.run import train_and_evaluate
from allcls_jax.experiments.sweep import sweep


def start(config: Config, workdir: Path) -> None:
    """Does the experiment, or goes on where a stopped one left off.

    Args:
      config: validated.
      workdir: of the experiment.

    Raises:
      InputError: if data, weights or the workdir cannot be used.
    """
    match config.experiment.kind:
        case ExperimentKind.RUN:
            train_and_evaluate(config, workdir)
        case ExperimentKind.CROSS_VALIDATION:
            cross_validate(config, workdir)
        case ExperimentKind.LEAK_LADDER:
            climb(config, workdir)
        case ExperimentKind.SWEEP:
            sweep(config, workdir)
