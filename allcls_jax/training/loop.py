"""The loop and nothing else: steps, validation, logs, checkpoints, in a fixed order.

At the end of an epoch: validate, log, save, go on. A run that is stopped at any moment
and started again ends with the same parameters and the same log.
"""

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from allcls_jax import terminal
from allcls_jax.errors import InputError
from allcls_jax.training.checkpoint import Checkpoints
from allcls_jax.training.heads import Heads
from allcls_jax.training.state import Sums, TrainState
from allcls_jax.training.whole import Whole
from allcls_jax.training.writers import MetricsLog, Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long training lasts.

    Attributes:
      num_epochs: epochs in all, those before a resume included.
      steps_per_epoch: batches that show every training image once; of many heads, of
        the one that has most.
      num_images: training images of an epoch, of all heads.
      checkpoint_seconds: from one checkpoint to the next, at least.
      patience: epochs without a lower validation loss that end training, or None.
    """

    num_epochs: int
    steps_per_epoch: int
    num_images: int
    checkpoint_seconds: float
    patience: int | None


class Saver:
    """Saves states now and then, and logs before them.

    A state stands for itself: it is saved with a record of its run.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        logs: Sequence[MetricsLog],
        record: dict[str, Any],
        schedule: Schedule,
    ):
        """Begins to measure the time.

        Args:
          checkpoints: get the states.
          logs: of all runs that are trained.
          record: saved with each state, beside the number of steps done.
          schedule: says how often.
        """
        self._checkpoints, self._logs, self._record = checkpoints, logs, record
        self._schedule = schedule
        self._last = time.monotonic()

    def maybe(self, state: TrainState, step: int) -> None:
        """Saves if the last time is long enough ago, or this is the end."""
        due = time.monotonic() - self._last >= self._schedule.checkpoint_seconds
        # Clocks differ, and all processes must save together.
        if jax.process_count() > 1:
            due = bool(multihost_utils.broadcast_one_to_all(np.int32(due)))
        if due or step == self._schedule.num_epochs * self._schedule.steps_per_epoch:
            self.now(state, step)

    def now(self, state: TrainState, step: int) -> None:
        """Saves, unless this step is saved."""
        if self._checkpoints.latest_step == step:
            return
        for log in self._logs:
            log.sync()
        self._checkpoints.save(step, state, self._record | {"steps": step})
        self._last = time.monotonic()


def train_heads(
    heads: Heads,
    state: TrainState,
    schedule: Schedule,
    *,
    first_epoch: int,
    logs: Sequence[MetricsLog],
    saver: Saver,
) -> TrainState | None:
    """Trains heads from the given state to the end of the schedule.

    Args:
      heads: on their features.
      state: fresh, or restored; is used up.
      schedule: how long.
      first_epoch: the number of epochs done.
      logs: of each head, get a record for each epoch.
      saver: keeps states.

    Returns:
      The last state; None if a signal (SIGTERM, Ctrl-C) stopped it, with the state
      saved.

    Raises:
      InputError: if a loss is not finite.
    """
    per_epoch = schedule.steps_per_epoch
    with (
        _progress(schedule, first_epoch * per_epoch) as advance,
        _stop_signals() as stop_asked,
    ):
        for number in range(first_epoch, schedule.num_epochs):
            # Counted one by one, as processes agree on the number of their stop.
            running = heads.running(state)
            if not any(running):
                saver.now(state, number * per_epoch)
                terminal.say(f"stopped early, behind epoch {number}")
                break
            if stop_asked(number):
                saver.now(state, number * per_epoch)
                return None
            state, sums = heads.conclude(heads.epoch(state, number))
            step = (number + 1) * per_epoch
            epochs = []
            for goes_on, steps, of_head, log in zip(
                running, heads.steps_per_epoch, heads.per_head(sums), logs, strict=True
            ):
                if goes_on:
                    epoch = _epoch(number + 1, (number + 1) * steps, *of_head)
                    _check_finite(step, epoch["train_loss"])
                    log.write(epoch)
                    epochs.append(epoch)
            advance(schedule.num_images)
            terminal.say(_epoch_line(epochs, schedule.num_epochs))
            saver.maybe(state, step)
    return state


def train_whole(
    whole: Whole,
    state: TrainState,
    schedule: Schedule,
    *,
    log: MetricsLog,
    saver: Saver,
    saved: Callable[[TrainState], TrainState],
) -> TrainState | None:
    """Trains a whole network from the given state to the end of the schedule.

    Args:
      whole: the network and its images.
      state: fresh, or restored; is used up.
      schedule: how long.
      log: gets a record for each epoch.
      saver: keeps states.
      saved: what of a state is kept.

    Returns:
      As `train_heads`.

    Raises:
      InputError: if the loss of a step is not finite.
    """
    per_epoch = schedule.steps_per_epoch
    step, last = int(state.step), schedule.num_epochs * per_epoch
    batches = whole.batches(step)
    with _progress(schedule, step) as advance, _stop_signals() as stop_asked:
        pending: tuple[int, jax.Array] | None = None
        while step < last:
            if _stopped_early(state, step, schedule):
                saver.now(saved(state), step)
                terminal.say(f"stopped early, behind epoch {step // per_epoch}")
                break
            if stop_asked(step):
                if pending is not None:
                    _check_finite(*pending)
                saver.now(saved(state), step)
                return None
            state, loss = whole.step(state, next(batches))
            # The device is at work on this step while the last one's loss is looked at.
            if pending is not None:
                _check_finite(*pending)
            step += 1
            pending = (step, loss)
            advance(_images_seen(step, schedule) - _images_seen(step - 1, schedule))
            if step % per_epoch:
                continue
            _check_finite(*pending)
            state, sums = whole.conclude(state)
            epoch = _epoch(step // per_epoch, step, *sums)
            log.write(epoch)
            terminal.say(_epoch_line([epoch], schedule.num_epochs))
            saver.maybe(saved(state), step)
    return state


def _stopped_early(state: TrainState, step: int, schedule: Schedule) -> bool:
    """Returns whether the best epoch lies too far behind."""
    if schedule.patience is None or step % schedule.steps_per_epoch:
        return False
    return step - int(state.best.step) >= schedule.patience * schedule.steps_per_epoch


def _progress(
    schedule: Schedule, step: int
) -> contextlib.AbstractContextManager[terminal.Advance]:
    return terminal.track(
        "training",
        schedule.num_epochs * schedule.num_images,
        "images",
        done=_images_seen(step, schedule),
    )


def _epoch(number: int, step: int, train: Sums, validation: Sums) -> Record:
    """Returns the record of an epoch."""
    epoch: Record = {"epoch": number, "step": step}
    for use, sums in (("train", train), ("validation", validation)):
        count = float(sums.count)
        epoch[f"{use}_loss"] = float(sums.loss) / count
        epoch[f"{use}_accuracy"] = float(sums.correct) / count
    return epoch


def _images_seen(step: int, schedule: Schedule) -> int:
    """Images of all epochs up to a step; the last batch of an epoch may be short."""
    epochs, within = divmod(step, schedule.steps_per_epoch)
    batch = math.ceil(schedule.num_images / schedule.steps_per_epoch)
    return epochs * schedule.num_images + min(within * batch, schedule.num_images)


def _check_finite(step: int, loss: jax.Array | float) -> None:
    if not math.isfinite(float(loss)):
        raise InputError(
            f"the loss of step {step} is {float(loss)}: training cannot go "
            "on; lower --config.optim.learning_rate or set --config.optim.clip_norm=1 "
            "and start in a new --workdir"
        )


def _epoch_line(epochs: Sequence[Record], num_epochs: int) -> str:
    """Returns one line; of many heads it tells the means."""
    mean = {
        name: sum(epoch[name] for epoch in epochs) / len(epochs) for name in epochs[0]
    }
    of = f"  mean of {len(epochs)} heads:" if len(epochs) > 1 else ""
    return (
        f"epoch {epochs[0]['epoch']:>3}/{num_epochs}{of}"
        f"  train: loss {mean['train_loss']:.4f},"
        f" accuracy {mean['train_accuracy']:.4f}"
        f"  validation: loss {mean['validation_loss']:.4f},"
        f" accuracy {mean['validation_accuracy']:.4f}"
    )


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[int], bool]]:
    """Notes SIGTERM and Ctrl-C instead of dying of them, once.

    Yields:
      A function of the number of the step or epoch, counted one by one: whether all
      processes shall stop before it.
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
