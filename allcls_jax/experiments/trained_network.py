"""The best parameters of a run, restored into its network."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from allcls_jax.errors import InputError
from allcls_jax.experiments.training import CHECKPOINTS
from allcls_jax.models import vgg
from allcls_jax.training import optim
from allcls_jax.training.checkpoint import Checkpoints
from allcls_jax.training.network import Network
from allcls_jax.training.state import Best


def restore(workdir: Path, network: Network) -> tuple[vgg.Params, int, dict[str, Any]]:
    """Returns the parameters of the best epoch, its step, and the record beside them.

    Args:
      workdir: of a run that has finished an epoch.
      network: of the run's configuration, with its frozen weights in place.

    Raises:
      InputError: if there is no checkpoint, or the weights are not those that the run
        was trained upon.
    """
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        record = checkpoints.record()
        if record["weights"]["sha256"] != network.weights["sha256"]:
            raise InputError(
                f"--config.model.weights: {network.weights['file'] or 'random'} is not "
                f"what the run was trained upon, {record['weights']['file']} (sha256 "
                f"{record['weights']['sha256']}); give that file"
            )
        trained = optim.trainable(network.params, network.mask)
        best = checkpoints.restore_best(
            Best(params=trained, loss=jnp.zeros(()), step=jnp.zeros((), jnp.int32))
        )
    return optim.merge(network.params, best.params), int(best.step), record
