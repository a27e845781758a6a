"""The whole network trained on images, batch by batch: fine-tuning.

Also the plain way to train a head behind a frozen backbone, which `heads` must equal.
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from allcls_jax.data import pipeline
from allcls_jax.data.cells import CellTable
from allcls_jax.data.pipeline import Batch, Images, Order, Reading
from allcls_jax.models.vgg import Params
from allcls_jax.terminal import Advance
from allcls_jax.training.sharding import Shardings
from allcls_jax.training.state import Sums, TrainState
from allcls_jax.training.steps import EvalStep, RunSettings, Steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
    """A network that is trained on images.

    Attributes:
      steps: compiled steps.
      shardings: where batches go.
      images: by row of the table.
      resident: all of them on the devices, or None.
      table: records by row.
      order: of the training images.
      validation: (n,) int64 rows.
      settings: of the run.
      training: how training batches are read.
      evaluating: how batches are read where nothing is learnt.
    """

    steps: Steps
    shardings: Shardings
    images: Images
    resident: jax.Array | None
    table: CellTable
    order: Order
    validation: np.ndarray
    settings: RunSettings
    training: Reading
    evaluating: Reading

    def batches(self, start: int) -> Iterator[Batch]:
        """Yields training batches without end, from the `start`-th on."""
        return pipeline.training_batches(
            self.images,
            self.table,
            self.order,
            self.training,
            start=start,
            resident=self.resident is not None,
        )

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        """Returns the state after a step, and the batch's mean loss."""
        placed = self.shardings.put_batch(batch)
        return self.steps.train(state, placed, self.resident, self.settings)

    def conclude(self, state: TrainState) -> tuple[TrainState, tuple[Sums, Sums]]:
        """Validates, notes the best, and begins the sums anew."""
        sums, _ = self.evaluate(state.used(), self.validation)
        return self.steps.conclude(state, sums)

    def evaluate(
        self,
        params: Params,
        rows: np.ndarray,
        advance: Advance | None = None,
        *,
        final: bool = False,
    ) -> tuple[Sums, dict[int, float]]:
        """As the function `evaluate`, of rows (n,) int64, each once.

        Args:
          params: as of the function.
          rows: of the table.
          advance: as of the function.
          final: whether to look at all views of an image, if there are several.
        """
        batches = pipeline.evaluation_batches(
            self.images,
            self.table,
            rows,
            self.evaluating,
            resident=self.resident is not None,
        )
        return evaluate(
            params,
            self.steps.test if final else self.steps.eval,
            self.shardings,
            batches,
            resident=self.resident,
            advance=advance,
        )


def evaluate(
    params: Params,
    eval_step: EvalStep,
    shardings: Shardings,
    batches: Iterator[Batch],
    *,
    resident: jax.Array | None = None,
    advance: Advance | None = None,
) -> tuple[Sums, dict[int, float]]:
    """Returns the sums over all images, and P(ALL) of each by its row.

    Args:
      params: of the whole network, on the devices.
      eval_step: from `steps.make_eval_step`.
      shardings: where batches go.
      batches: padded and masked; every image stands in them once.
      resident: images on the devices that the batches speak of, or None.
      advance: is told the number of images just evaluated.
    """
    total: Sums | None = None
    probabilities: dict[int, float] = {}

    def note(sums: Sums, probability: jax.Array, row: jax.Array) -> None:
        for index, value in zip(
            np.asarray(row).tolist(), np.asarray(probability).tolist(), strict=True
        ):
            if index != pipeline.PADDING:
                assert index not in probabilities, f"row {index} came twice"
                probabilities[index] = value
        if advance is not None:
            advance(int(sums.count))

    pending = None
    for batch in batches:
        found = eval_step(params, shardings.put_batch(batch), resident)
        total = found[0] if total is None else total + found[0]
        # The device is at work on this batch while the last one is looked at.
        if pending is not None:
            note(*pending)
        pending = found
    if pending is not None:
        note(*pending)
    assert total is not None, "nothing to evaluate"
    assert len(probabilities) == int(total.count), "an image was lost or counted twice"
    return total, probabilities
