"""One mesh axis, `data`: where state and batches lie, and the start of processes.

Parameters are on every device, a batch is divided among them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from allcls_jax import terminal
from allcls_jax.data.pipeline import Batch
from allcls_jax.errors import InputError

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Shardings:
    """Where arrays lie on the devices of all processes."""

    replicated: NamedSharding
    batch: NamedSharding

    def put_batch(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the global batch, of which this process gives its block."""
        return {
            name: jax.make_array_from_process_local_data(self.batch, array)
            for name, array in batch.items()
            if isinstance(array, np.ndarray)
        }

    def put_replicated(self, tree: Any) -> Any:
        """Returns the tree with a copy of every array on every device.

        Args:
          tree: arrays; the same ones on every process.
        """
        return _put_whole(tree, self.replicated)

    def put_divided(self, tree: Any) -> Any:
        """Returns the tree with the first axis of every array divided among devices.

        Args:
          tree: whole arrays; the same ones on every process.
        """
        return _put_whole(tree, self.batch)


def _put_whole(tree: Any, placed: NamedSharding) -> Any:
    if jax.process_count() == 1:
        return jax.device_put(tree, placed)
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(
            np.shape(array), placed, lambda index: np.asarray(array)[index]
        ),
        tree,
    )


def data_parallel(devices: Sequence[Any] | None = None) -> Shardings:
    """Returns the shardings over devices; None: all devices of all processes."""
    mesh = Mesh(np.array(devices or jax.devices()), ("data",))
    return Shardings(
        replicated=NamedSharding(mesh, PartitionSpec()),
        batch=NamedSharding(mesh, PartitionSpec("data")),
    )


def check_batch_size(name: str, batch_size: int) -> None:
    """Raises `InputError` unless every device gets the same number of images, not 0.

    Args:
      name: of the field.
      batch_size: its value.
    """
    devices = jax.device_count()
    if batch_size < 1 or batch_size % devices:
        down = max(batch_size // devices, 1) * devices
        raise InputError(
            f"{name} = {batch_size}: must be a multiple of the number of "
            f"devices, {devices}; give {down}"
        )


def at_least(batch_size: int) -> int:
    """Returns the smallest batch of so many images that divides among the devices."""
    devices = jax.local_device_count()
    return -(-batch_size // devices) * devices


def start_processes(
    coordinator: str | None, num_processes: int | None, process: int | None
) -> None:
    """Joins the processes of one run; call it before any other use of JAX.

    Args:
      coordinator: `host:port` of the first process; None leaves it, and the other two,
        to JAX, which knows SLURM, Cloud TPU, Open MPI and Kubernetes.
      num_processes: how many there are.
      process: the number of this one, from 0.

    Raises:
      InputError: if JAX finds no cluster that it knows.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, process)
    except ValueError as error:
        raise InputError(
            f"--distributed: no cluster was recognised ({error}); give --coordinator, "
            "--num_processes and --process_id"
        ) from error
    # The connections of collectives are made at the first one, and those who come to it
    # late, because they pack cells, find the others gone.
    wait_for_all("started")
    if jax.process_index():
        terminal.silence()


def on_first_process(work: Callable[[], _Result]) -> _Result | None:
    """Runs something on the first process, the others waiting for its end.

    Returns:
      What it returned, or None on the other processes.

    Raises:
      InputError: on the other processes, if it raised anything.
    """
    result, error = None, None
    if jax.process_index() == 0:
        try:
            result = work()
        except Exception as caught:  # raised below, when the others know of it
            error = caught
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.int32(error is not None))
        if failed.any() and error is None:
            raise InputError("process 0 stopped; its message tells why")
    if error is not None:
        raise error
    return result


def union(rows: np.ndarray, num_rows: int) -> np.ndarray:
    """Returns the rows that any process has, ascending, the same on every process.

    Args:
      rows: (n,) int64, each below `num_rows`.
      num_rows: of the table.
    """
    chosen = np.zeros(num_rows, np.uint8)
    chosen[rows] = 1
    if jax.process_count() > 1:
        chosen = multihost_utils.process_allgather(chosen).max(axis=0)
    return np.flatnonzero(chosen)


def wait_for_all(what: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
