"""The same job on Ray Data, for clusters: actors compute blocks, the caller logs them.

Each actor opens the model once. The model, the list and the pictures must lie in the
same place on every machine.
"""

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax.errors import InputError
from allcls_jax.serving.model import Model, open_model
from allcls_jax.serving.prediction import work_log
from allcls_jax.serving.prediction.inputs import PictureList, read_block
from allcls_jax.serving.prediction.rows import Rows

LOCAL = "local"

# Tasks that Ray keeps track of at most; with more blocks a task has several.
_TASKS = 4096


def check_installed() -> None:
    """Raises `InputError` if Ray is missing."""
    if any(importlib.util.find_spec(name) is None for name in ("ray", "pyarrow")):
        raise InputError("--ray: Ray is not installed; pip install 'allcls-jax[ray]'")


@contextlib.contextmanager
def running(address: str, num_actors: int) -> Iterator[None]:
    """Has Ray running, and stops what it started.

    Args:
      address: `local`: on this machine; else of a cluster, or `auto`.
      num_actors: processes that compute.

    Raises:
      InputError: if Ray is missing, or no cluster answers.
    """
    check_installed()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": address, "log_to_driver": False}
    if address == LOCAL:
        options |= {"num_cpus": num_actors, "include_dashboard": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what later versions of Ray will do
        try:
            ray.init(logging_level=logging.ERROR, **options)
        # For an address that does not answer Ray ends the process.
        except (ConnectionError, RuntimeError, ValueError, SystemExit) as error:
            raise InputError(
                f"--ray={address}: no cluster answers there ({error}); start one with "
                "ray start, or leave the address out to use this machine"
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


def lines(
    model: Model,
    pictures: PictureList,
    blocks: Sequence[int],
    *,
    threshold: float,
    coverage: float,
    num_actors: int,
) -> Iterator[tuple[int, bytes]]:
    """Yields blocks and the lines of their log, as actors of a running Ray finish them.

    Args:
      model: that the actors open from its path.
      pictures: the list, in a folder that they share.
      blocks: numbers of those to compute.
      threshold: as for `Model.prediction`.
      coverage: as for `Model.prediction`.
      num_actors: processes that compute.
    """
    import ray
    import ray.data

    if not blocks:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{"block": block, "offset": pictures.offsets[block]} for block in blocks]
    has_gpus = ray.cluster_resources().get("GPU", 0) >= num_actors
    computed = ray.data.from_items(
        items, override_num_blocks=min(len(items), _TASKS)
    ).map_batches(
        _Actor,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(num_actors, len(items))),
        num_cpus=1,
        num_gpus=1 if has_gpus else 0,
        fn_constructor_kwargs={
            "model": str(Path(model.path).absolute()),
            "batch_size": model.batch_size,
            "file": str(pictures.file.absolute()),
            "folder": str(Path.cwd()),
            "block_size": pictures.block_size,
            "threshold": threshold,
            "coverage": coverage,
        },
    )
    for row in computed.iter_rows():
        yield int(row["block"]), bytes(row["line"])


class _Actor:
    """Computes blocks with a model that it opens once."""

    def __init__(
        self,
        *,
        model: str,
        batch_size: int,
        file: str,
        folder: str,
        block_size: int,
        threshold: float,
        coverage: float,
    ):
        os.chdir(folder)  # relative paths of pictures are the caller's
        opened = open_model(model, batch_size=batch_size)
        opened.self_check()
        self._rows = Rows(opened, threshold, coverage)
        self._file = Path(file)
        self._block_size = block_size

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        block, offset = int(batch["block"][0]), int(batch["offset"][0])
        pictures = read_block(self._file, offset, self._block_size)
        ((_, rows),) = self._rows.of([(block, pictures)], ahead=len(pictures))
        line = np.array([work_log.line_of(block, rows)], dtype=object)
        return {"block": batch["block"], "line": line}
