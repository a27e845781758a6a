"""Checkpoints of a run: the newest state, which has the best within; orbax's only user.

A checkpoint is whole or absent. It holds what was trained, and a record with the
configuration and the hash of the weights that it was trained upon.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from allcls_jax.errors import InputError
from allcls_jax.training.state import Best, TrainState

# Where checkpoints go that are no longer wanted.
_TRASH = "deleted"


class Checkpoints:
    """The newest checkpoint in a folder, written in the background; a context."""

    def __init__(self, directory: Path, *, read_only: bool = False):
        """Opens or makes the folder; no other process may write there."""
        self._directory = directory
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.LatestN(1),
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

    def save(self, step: int, state: TrainState, record: dict[str, Any]) -> None:
        """Begins to save; earlier saves are finished first.

        Args:
          step: number of steps done.
          state: is copied before this returns, so it may be donated afterwards.
          record: plain JSON.
        """
        self.wait()
        self._empty_trash()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
            ),
        )

    def wait(self) -> None:
        """Returns when all that was saved is on the disk."""
        self._manager.wait_until_finished()

    def restore(self, like: TrainState) -> TrainState | None:
        """Returns the newest state, placed and typed as `like`, or None."""
        step = self.latest_step
        if step is None:
            return None
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_abstract(like)))
        with self._whole(step):
            return self._manager.restore(step, args=args)["state"]

    def restore_best(self, like: Best) -> Best:
        """Returns the best of the newest state, placed and typed as `like`.

        Raises:
          InputError: if no epoch has been finished.
        """
        step = self._finished()
        # Another manager: this one has bound the item to the whole state.
        options = ocp.CheckpointManagerOptions(read_only=True)
        with ocp.CheckpointManager(
            self._directory.absolute(), options=options
        ) as reader:
            abstract = {"best": _abstract(like)}
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
            with self._whole(step):
                best = reader.restore(step, args=composite)["state"]["best"]
        if not np.all(np.isfinite(np.asarray(best.loss))):
            raise self._nothing()
        return best

    def record(self) -> dict[str, Any]:
        """Returns the record saved with the newest state.

        Raises:
          InputError: if there is none.
        """
        return self._record(self._finished())

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
                "damaged, remove this folder, and the run begins anew"
            ) from error

    def _empty_trash(self) -> None:
        if not self._read_only and jax.process_index() == 0:
            shutil.rmtree(self._directory / _TRASH, ignore_errors=True)

    def _finished(self) -> int:
        if self.latest_step is None:
            raise self._nothing()
        return self.latest_step

    def _nothing(self) -> InputError:
        return InputError(
            f"{self._directory}: no checkpoint; give a --workdir in which training "
            "has finished at least one epoch"
        )


def _abstract(tree: Any) -> Any:
    """Returns shapes, types and shardings in place of arrays."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
