"""Networks that are evaluated: finished runs, and the way of cells through them.

All of them have one shape, so that a program is compiled once.
"""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax import config_files, terminal
from allcls_jax.config import Config, ExperimentKind
from allcls_jax.data import pipeline
from allcls_jax.data.packing import PackedCells
from allcls_jax.errors import InputError
from allcls_jax.experiments import results as outputs
from allcls_jax.experiments import workdir as folder
from allcls_jax.models import vgg
from allcls_jax.training import inputs, steps, whole
from allcls_jax.training.network import Network

# A checkpoint fits only a configuration that agrees in these.
_NETWORK_FIELDS = (
    "model.name",
    "model.head",
    "model.blocks",
    "model.normalise_stain",
    "data.image_size",
    "data.pack_size",
    "data.crop",
    "optim.trainable",
)

# Batches by which the speed of one network on one view is measured.
_TIMED = 4


@dataclasses.dataclass(frozen=True)
class Member:
    """A finished run.

    Attributes:
      folder: of it.
      trained: its configuration, as read from JSON.
    """

    folder: Path
    trained: dict[str, Any]

    @property
    def name(self) -> dict[str, int]:
        """What its rows are called by."""
        data = self.trained["data"]
        return {
            "repeat": data["repeat"],
            "test_fold": data["test_fold"],
            "seed": self.trained["seed"],
        }

    @property
    def views(self) -> int:
        """Of an image: as many as its temperature and thresholds are of."""
        return self.trained["evaluation"].get("views", 1)


class Forward:
    """Cells on their way through networks of one shape.

    Attributes:
      seconds: that networks have taken, compiling left out.
    """

    def __init__(
        self,
        config: Config,
        cells: PackedCells,
        rows: np.ndarray,
        network: Network,
        views: int,
        *,
        many: bool,
    ):
        """Brings the cells to where they are wanted, if many networks see them."""
        images = pipeline.PackedImages(cells, None, config.data.image_size)
        self._images, self._resident = images, None
        if many:
            self._images, self._resident = inputs.place_images(
                config, images, rows, network
            )
        size = inputs.forward_batch_size(config, network)
        self._table, self._rows, self._network = cells.table, rows, network
        self._reading = inputs.reading_of(config, size)
        self._step = self._make_step(views)
        self._views = views
        self.seconds = 0.0

    def probabilities(
        self, params: vgg.Params, advance: terminal.Advance
    ) -> dict[int, float]:
        """Returns P(ALL) of each cell by its row, and adds up the time."""
        started = time.monotonic()
        found = self._run(self._step, params, self._rows, advance)
        self.seconds += time.monotonic() - started
        return found

    def images_per_second_of_one_pass(self, params: vgg.Params) -> float:
        """Compiles, and measures one network on the images as they are.

        Args:
          params: of any of the networks.
        """
        size = self._reading.batch_size
        self._run(self._step, params, self._rows[:size])
        single = self._step if self._views == 1 else self._make_step(1)
        self._run(single, params, self._rows[:size])
        some = self._rows[: _TIMED * size]
        started = time.monotonic()
        self._run(single, params, some)
        return len(some) / (time.monotonic() - started)

    def cost(self, networks: int, one_pass: float) -> dict[str, Any]:
        """Returns what so many networks have taken, beside what less would take.

        Args:
          networks: that have seen all cells.
          one_pass: images a second of one network and one view.
        """
        rate = len(self._rows) / self.seconds
        return {
            "passes_per_image": networks * self._views,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(rate, 3),
            "images_per_second_of_one_network": round(networks * rate, 3),
            "images_per_second_of_one_pass": round(one_pass, 3),
            "times_one_pass": round(one_pass / rate, 1),
        }

    def _make_step(self, views: int) -> steps.EvalStep:
        network = self._network
        return steps.make_eval_step(
            network.model, network.preprocessing, network.shardings, views
        )

    def _run(
        self,
        step: steps.EvalStep,
        params: vgg.Params,
        rows: np.ndarray,
        advance: terminal.Advance | None = None,
    ) -> dict[int, float]:
        batches = pipeline.evaluation_batches(
            self._images,
            self._table,
            rows,
            self._reading,
            resident=self._resident is not None,
        )
        _, found = whole.evaluate(
            params,
            step,
            self._network.shardings,
            batches,
            resident=self._resident,
            advance=advance,
        )
        return found


def members_of(config: Config, workdir: Path) -> Iterator[Member]:
    """Yields the run of a folder, or the finished runs of a cross-validation.

    Args:
      config: that says which network is built.
      workdir: of either.

    Raises:
      InputError: if it is another folder, nothing in it is finished, or a run was
        trained with another network.
    """
    of_all = config_files.load(workdir / folder.CONFIG_FILE)
    kind = of_all["experiment"]["kind"]
    folders = [workdir]
    if kind == ExperimentKind.CROSS_VALIDATION:
        every = sorted(workdir.glob("repeat*-fold*-seed*"))
        folders = [run for run in every if (run / outputs.RESULTS_FILE).exists()]
        if not folders:
            raise InputError(
                f"--workdir={workdir}: none of its runs is finished; train it to its "
                "end first"
            )
        terminal.say(f"{len(folders)} networks of {workdir}")
    elif kind != ExperimentKind.RUN:
        raise InputError(
            f"--workdir={workdir}: holds several cross-validations; give the folder of "
            "one of them, or of one of their runs"
        )
    for run in folders:
        trained = config_files.load(run / folder.CONFIG_FILE)
        # Runs of before there were these fields have cells, and heads, as they were.
        trained["model"] = {"normalise_stain": False, "blocks": 5} | trained["model"]
        wrong = config_files.differences(
            trained, dataclasses.asdict(config), only=_NETWORK_FIELDS
        )
        if wrong:
            raise InputError(
                f"{run}: its run was trained with another configuration "
                f"({'; '.join(wrong)}); give the same --config and overrides"
            )
        yield Member(run, trained)
