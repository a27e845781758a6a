"""The loop and nothing else: steps, validation, checkpoints, in a fixed order.

At the end of an epoch: validate, log, save, go on. A run that is stopped at any moment
and started again ends with the same parameters and the same log.
"""

import contextlib
import dataclasses
import math
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from allcls_jax import terminal
from allcls_jax.data.pipeline import Batch
from allcls_jax.errors import InputError
from allcls_jax.models.vgg import Params
from allcls_jax.training.checkpoint import Checkpoints
from allcls_jax.training.sharding import Shardings
from allcls_jax.training.state import Sums, TrainState
from allcls_jax.training.steps import Steps
from allcls_jax.training.writers import MetricsLog, Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long training lasts.

    Attributes:
      num_epochs: epochs in all, those before a resume included.
      steps_per_epoch: batches that show every training image once.
      num_images: training images of an epoch.
    """

    num_epochs: int
    steps_per_epoch: int
    num_images: int


def train(
    state: TrainState,
    steps: Steps,
    shardings: Shardings,
    batches: Iterator[Batch],
    validation_batches: Callable[[], Iterator[Batch]],
    schedule: Schedule,
    *,
    checkpoints: Checkpoints,
    record: dict[str, Any],
    log: MetricsLog,
) -> bool:
    """Trains from the given state to the end of the schedule.

    Args:
      state: fresh, or restored from the newest checkpoint; is used up.
      steps: compiled steps.
      shardings: where batches go.
      batches: training batches, beginning with the one that follows `state.step`.
      validation_batches: called after each epoch; every validation image once.
      schedule: how long.
      checkpoints: the newest and the best state are kept there.
      record: saved with each of them, beside the number of batches used.
      log: gets a record for each epoch.

    Returns:
      Whether training came to its end; False if a signal (SIGTERM, Ctrl-C) stopped it,
      with the state saved.

    Raises:
      InputError: if the loss of a step is not finite.
    """
    per_epoch = schedule.steps_per_epoch
    step, last = int(state.step), schedule.num_epochs * per_epoch
    progress = terminal.track(
        "training",
        schedule.num_epochs * schedule.num_images,
        "images",
        done=_images_seen(step, schedule),
    )

    def save(validation_loss: float | None) -> None:
        content = record | {"batches_used": step}
        checkpoints.save(state, content, validation_loss=validation_loss)

    with progress as advance, _stop_signals() as stop_asked:
        pending: tuple[int, jax.Array] | None = None
        while step < last:
            if stop_asked(step):
                _check_finite(pending)
                if checkpoints.latest_step != step:
                    save(None)
                return False
            if step % per_epoch == 0:
                state = steps.start_epoch(state)
            state, loss = steps.train(state, shardings.put_batch(next(batches)))
            # The device is at work on this step while the last one's loss is looked at.
            _check_finite(pending)
            step += 1
            pending = (step, loss)
            advance(_images_seen(step, schedule) - _images_seen(step - 1, schedule))
            if step % per_epoch:
                continue
            _check_finite(pending)
            trained = _means(state.sums, "train")
            sums, _ = evaluate(state.params, steps, shardings, validation_batches())
            epoch: Record = {"epoch": step // per_epoch, "step": step}
            epoch |= trained | _means(sums, "validation")
            log.write(epoch)
            terminal.say(_epoch_line(epoch, schedule.num_epochs))
            save(float(epoch["validation_loss"]))
    checkpoints.wait()
    return True


def evaluate(
    params: Params,
    steps: Steps,
    shardings: Shardings,
    batches: Iterator[Batch],
    advance: terminal.Advance | None = None,
) -> tuple[Sums, dict[int, float]]:
    """Returns the sums over all images, and P(ALL) of each by its row.

    Args:
      params: on the devices.
      steps: compiled steps.
      shardings: where batches go.
      batches: padded and masked; every image stands in them once.
      advance: is told the number of images just evaluated.
    """
    total: Sums | None = None
    probabilities: dict[int, float] = {}
    for batch in batches:
        sums, probability, row = steps.eval(params, shardings.put_batch(batch))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
        for index, value in zip(
            np.asarray(row).tolist(), np.asarray(probability).tolist(), strict=True
        ):
            if index >= 0:
                assert index not in probabilities, f"row {index} came twice"
                probabilities[index] = value
        if advance is not None:
            advance(int(sums.count))
    assert total is not None, "nothing to evaluate"
    assert len(probabilities) == int(total.count), "an image was lost or counted twice"
    return total, probabilities


def _means(sums: Sums, use: str) -> Record:
    count = float(sums.count)
    return {
        f"{use}_loss": float(sums.loss) / count,
        f"{use}_accuracy": float(sums.correct) / count,
    }


def _images_seen(step: int, schedule: Schedule) -> int:
    """Images of all epochs up to a step; the last batch of an epoch may be short."""
    epochs, within = divmod(step, schedule.steps_per_epoch)
    batch = math.ceil(schedule.num_images / schedule.steps_per_epoch)
    return epochs * schedule.num_images + min(within * batch, schedule.num_images)


def _check_finite(pending: tuple[int, jax.Array] | None) -> None:
    if pending is not None and not math.isfinite(float(pending[1])):
        raise InputError(
            f"the loss of step {pending[0]} is {float(pending[1])}: training cannot go "
            "on; lower --config.optim.learning_rate or set --config.optim.clip_norm=1 "
            "and start in a new --workdir"
        )


def _epoch_line(epoch: Record, num_epochs: int) -> str:
    return (
        f"epoch {epoch['epoch']:>3}/{num_epochs}"
        f"  train: loss {epoch['train_loss']:.4f},"
        f" accuracy {epoch['train_accuracy']:.4f}"
        f"  validation: loss {epoch['validation_loss']:.4f},"
        f" accuracy {epoch['validation_accuracy']:.4f}"
    )


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[int], bool]]:
    """Notes SIGTERM and Ctrl-C instead of dying of them, once.

    Yields:
      A function of the step: whether all processes shall stop before it.
    """
    seen = threading.Event()
    old: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        seen.set()
        terminal.say(
            f"{signal.Signals(number).name}: saving; a second one ends at once"
        )
        # An impatient second signal does what it always did.
        signal.signal(number, old[signal.Signals(number)])

    # Python allows handlers in the main thread only; of several processes each has
    # JAX's own handler, which must not be replaced.
    alone = jax.process_count() == 1
    if alone and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            old[number] = signal.signal(number, note)

    def stop_asked(step: int) -> bool:
        if alone:
            return seen.is_set()
        # A signal to any process stops all of them before the same step.
        return multihost_utils.reached_preemption_sync_point(step)

    try:
        yield stop_asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
