"""Checkpoints of a run: the latest and the best; the only user of orbax.

A checkpoint is whole or absent. It holds the state, and a record with the configuration
and the position in the data, so that it stands for itself.
"""

import contextlib
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from allcls_jax.errors import InputError
from allcls_jax.models.vgg import Params
from allcls_jax.training.state import TrainState

# The best checkpoint has the smallest.
_METRIC = "validation_loss"

# Where checkpoints go that are no longer wanted.
_TRASH = "deleted"


class Checkpoints:
    """The checkpoints in a folder, written in the background; a context manager."""

    def __init__(self, directory: Path, *, read_only: bool = False):
        """Opens or makes the folder; no other process may write there."""
        self._directory = directory

        def metric(metrics: dict[str, float]) -> float:
            return metrics[_METRIC]

        # Both are needed: the policy decides what is kept (the newest also where it is
        # not the best, or a resumed run would lose steps), `best_fn` what is best.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(1),
                    policies.BestN(get_metric_fn=metric, reverse=True, n=1),
                ]
            ),
            best_fn=metric,
            best_mode="min",
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            # Deleting takes time, and a run killed meanwhile would leave half a
            # checkpoint that looks whole; moving takes none.
            todelete_subdir=_TRASH,
        )
        self._read_only = read_only
        self._empty_trash()
        self._manager = ocp.CheckpointManager(
            directory.absolute(), options=options, item_names=("state", "record")
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()
        self._empty_trash()

    @property
    def latest_step(self) -> int | None:
        """The number of steps in the newest checkpoint."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The number of steps in the checkpoint with the lowest validation loss."""
        return self._manager.best_step()

    def save(
        self,
        state: TrainState,
        record: dict[str, Any],
        *,
        validation_loss: float | None,
    ) -> None:
        """Begins to save; earlier saves are finished first.

        Args:
          state: is copied before this returns, so it may be donated afterwards.
          record: plain JSON.
          validation_loss: mean loss in nats, by which the best is chosen; None within
            an epoch, which is never the best.
        """
        self.wait()
        self._empty_trash()
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
            ),
            metrics={_METRIC: math.inf if validation_loss is None else validation_loss},
        )

    def wait(self) -> None:
        """Returns when all that was saved is on the disk."""
        self._manager.wait_until_finished()

    def restore_latest(self, like: TrainState) -> TrainState | None:
        """Returns the newest state, placed and typed as `like`, or None."""
        step = self.latest_step
        if step is None:
            return None
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_abstract(like)))
        with self._whole(step):
            return self._manager.restore(step, args=args)["state"]

    def restore_best_params(self, like: Params) -> Params:
        """Returns the parameters of the best state, placed and typed as `like`.

        Raises:
          InputError: if no epoch has been finished.
        """
        # Another manager: this one has bound the item to the whole state.
        options = ocp.CheckpointManagerOptions(read_only=True)
        with ocp.CheckpointManager(
            self._directory.absolute(), options=options
        ) as reader:
            abstract = {"params": _abstract(like)}
            restore_args = jax.tree.map(
                lambda leaf: ocp.ArrayRestoreArgs(
                    sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
                ),
                abstract,
            )
            args = ocp.args.PyTreeRestore(
                abstract, restore_args=restore_args, partial_restore=True
            )
            composite = ocp.args.Composite(state=args)
            step = self._best()
            with self._whole(step):
                return reader.restore(step, args=composite)["state"]["params"]

    def latest_record(self) -> dict[str, Any]:
        """Returns the record saved with the newest state."""
        assert self.latest_step is not None
        return self._record(self.latest_step)

    def best_record(self) -> dict[str, Any]:
        """Returns the record saved with the best state.

        Raises:
          InputError: if no epoch has been finished.
        """
        return self._record(self._best())

    def _record(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        with self._whole(step):
            return self._manager.restore(step, args=args)["record"]

    @contextlib.contextmanager
    def _whole(self, step: int) -> Iterator[None]:
        """Turns what orbax raises over a damaged checkpoint into an `InputError`."""
        try:
            yield
        except Exception as error:  # there is no common type
            raise InputError(
                f"{self._directory / str(step)}: the checkpoint cannot be read "
                f"({type(error).__name__}: {str(error).splitlines()[:1]}); if it is "
                "damaged, remove this folder, and the run goes on from another one"
            ) from error

    def _empty_trash(self) -> None:
        if not self._read_only and jax.process_index() == 0:
            shutil.rmtree(self._directory / _TRASH, ignore_errors=True)

    def _best(self) -> int:
        step = self.best_step
        metrics = None if step is None else self._manager.metrics(step)
        if step is None or metrics is None or math.isinf(metrics[_METRIC]):
            raise InputError(
                f"{self._directory}: no checkpoint; give a --workdir in which training "
                "has finished at least one epoch"
            )
        return step


def _abstract(tree: Any) -> Any:
    """Returns shapes, types and shardings in place of arrays."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
