"""What all rows share: sizes, the platform, a folder, the ceilings, the peers."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from allcls_jax import terminal
from allcls_jax.config import ModelName
from allcls_jax.experiments.benchmark import ceilings, recipe, timing
from allcls_jax.experiments.benchmark.catalog import CATALOG
from allcls_jax.experiments.benchmark.record import Figure, Row
from allcls_jax.experiments.benchmark.workers import Unavailable, Worker


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured.

    Attributes:
      models: of the forward rows; the first is that of all other rows.
      image_size: pixels.
      dtype: of the convolutions.
      forward_batches: of the forward rows.
      times: passes that are timed together, so that a device is never idle.
      repeats: measurements, of which the median is taken.
      matmul: side of the matrices.
      copy_bytes: of the copied array.
      head_images: of a head's epoch.
      heads: that are trained together.
      batch: of heads and of the recipe.
      tune_batch: of the fine-tuning step.
      streamed: steps whose images are read from the pack.
      recipe_images: of the whole recipe.
      recipe_epochs: of the same.
      keras_batches: of which Keras' own best is chosen; none: that row and the cold
        processes are left out.
      process_images: of the whole command.
      process_epochs: of the same.
      files: pictures that are decoded, packed and audited.
      predicted: images that are predicted.
      memory_images: few and many, that are packed and read.
    """

    models: tuple[ModelName, ...]
    image_size: int
    dtype: str
    forward_batches: tuple[int, ...]
    times: int
    repeats: int
    matmul: int
    copy_bytes: int
    head_images: int
    heads: int
    batch: int
    tune_batch: int
    streamed: int
    recipe_images: int
    recipe_epochs: int
    keras_batches: tuple[int, ...]
    process_images: int
    process_epochs: int
    files: int
    predicted: int
    memory_images: tuple[int, int]


GPU = Sizes(
    models=(ModelName.VGG19, ModelName.VGG16),
    image_size=224,
    dtype="bfloat16",
    forward_batches=(512,),
    times=8,
    repeats=7,
    matmul=8192,
    copy_bytes=2**30,
    head_images=10_661,
    heads=15,
    batch=128,
    tune_batch=256,
    streamed=40,
    recipe_images=10_661,
    recipe_epochs=30,
    keras_batches=(32, 64, 256, 512),
    process_images=500,
    process_epochs=10,
    files=2_000,
    predicted=10_240,
    memory_images=(10_661, 100_000),
)
CPU = dataclasses.replace(
    GPU,
    dtype="float32",
    forward_batches=(8, 16),
    times=1,
    repeats=5,
    matmul=2048,
    copy_bytes=2**28,
    head_images=500,
    batch=32,
    tune_batch=8,
    streamed=10,
    recipe_images=500,
    recipe_epochs=10,
    keras_batches=(),
    files=500,
    predicted=64,
)
QUICK = dataclasses.replace(
    CPU,
    models=(ModelName.TINY,),
    image_size=32,
    forward_batches=(2,),
    repeats=2,
    matmul=64,
    copy_bytes=2**16,
    head_images=20,
    heads=3,
    batch=8,
    tune_batch=4,
    streamed=4,
    recipe_images=20,
    recipe_epochs=2,
    keras_batches=(4,),
    process_images=20,
    process_epochs=1,
    files=4,
    predicted=8,
    memory_images=(100, 200),
)


@dataclasses.dataclass(frozen=True)
class Bench:
    """The benchmark under way.

    Attributes:
      sizes: how much is measured.
      platform: `gpu` or `cpu`.
      folder: for what is needed meanwhile; empty at first.
      data: folder of real cells, or None.
    """

    sizes: Sizes
    platform: str
    folder: Path
    data: Path | None

    @property
    def gpu(self) -> bool:
        """Whether there is an accelerator."""
        return self.platform == "gpu"

    def recipe(self, num_images: int) -> recipe.Recipe:
        """Returns the paper's recipe on so many images, all from one pack."""
        return recipe.open_recipe(**self.recipe_settings(num_images))

    def recipe_settings(self, num_images: int) -> dict[str, Any]:
        """Returns the arguments of `recipe.open_recipe`, as JSON knows them."""
        return {
            "model": str(self.model),
            "image_size": self.sizes.image_size,
            "packed": self.sizes.recipe_images,
            "num_images": num_images,
            "pack_cache": str(self.folder / "packs"),
            "data": None if self.data is None else str(self.data),
        }

    @property
    def model(self) -> ModelName:
        """Of all rows but the forward ones of other models."""
        return self.sizes.models[0]

    @functools.cached_property
    def ceilings(self) -> ceilings.Ceilings:
        """Of this process, measured once."""
        terminal.say("measuring the ceilings: matrix product, copy")
        return ceilings.measure(
            side=self.sizes.matmul,
            dtype=jnp.dtype(self.sizes.dtype),
            copy_bytes=self.sizes.copy_bytes,
            repeats=self.sizes.repeats,
        )

    def row(
        self,
        key: str,
        ours: Figure,
        *,
        unit: str,
        settings: str = "",
        peers: Mapping[str, Figure] | None = None,
        against: str = "",
    ) -> Row:
        """Returns the row of a key of the catalog; see `Row`."""
        entry = CATALOG[key]
        return Row(
            key=key,
            what=entry.what,
            settings=settings,
            unit=unit,
            ours=ours,
            peers=peers or {},
            against=against,
            bar=entry.bar(self.platform),
        )

    def new_folder(self, name: str) -> Path:
        """Returns a folder of that name with nothing in it."""
        number = sum(1 for _ in self.folder.glob(f"{name}-*"))
        path = self.folder / f"{name}-{number}"
        path.mkdir()
        return path

    def save(self, name: str, array: np.ndarray) -> str:
        """Writes an array for workers, and returns its file."""
        path = self.folder / f"{name}.npy"
        np.save(path, array, allow_pickle=False)
        return str(path)


def side_by_side(
    ours: Callable[[], Any],
    peers: Mapping[str, Mapping[str, Any]],
    *,
    times: int,
    repeats: int,
    count: float,
    check: Callable[[dict[str, Any]], str] | None = None,
) -> tuple[Figure, dict[str, Figure]]:
    """Measures us and peers in turns.

    Args:
      ours: does our work once, compiled.
      peers: settings of their workers by name.
      times: how often our work is started for one measurement.
      repeats: measurements of each.
      count: of what is done each time, for a rate.
      check: given what a worker said when ready, says what is wrong with it, or "".

    Returns:
      Our figure, and those of the peers.
    """
    found: dict[str, Figure] = {}
    notes: dict[str, str] = {}
    measures: dict[str, Callable[[], float]] = {
        "": lambda: timing.seconds(ours, times=times)
    }
    with contextlib.ExitStack() as opened:
        for name, settings in peers.items():
            terminal.say(f"starting {name}")
            try:
                worker = opened.enter_context(Worker(dict(settings)))
            except Unavailable as reason:
                found[name] = Figure(note=str(reason))
                continue
            wrong = check(worker.ready) if check else ""
            if wrong:
                worker.close()
                found[name] = Figure(note=wrong)
                continue
            notes[name] = worker.ready["note"]
            measures[name] = functools.partial(_seconds, worker, name, found)
        timing.seconds(ours, times=2)
        taken = timing.in_turns(measures, repeats=repeats)
    for name, note in notes.items():
        if name not in found:
            values = taken[name]
            found[name] = timing.figure(values, count=count, times=times, note=note)
    return (
        timing.figure(taken[""], count=count, times=times),
        {name: found[name] for name in peers},
    )


def fastest(peers: Mapping[str, Figure], names: Sequence[str]) -> str:
    """Returns the peer of the highest rate; the first of the names if none has one."""
    rates = {name: peers.get(name, Figure()).value for name in names}
    measured = {name: rate for name, rate in rates.items() if rate is not None}
    return max(measured, key=measured.__getitem__, default=names[0])


def _seconds(worker: Worker, name: str, found: dict[str, Figure]) -> float:
    """Measures once; a peer that fails on the way is noted, and asked no more."""
    if name not in found:
        try:
            return worker.seconds()
        except Unavailable as reason:
            found[name] = Figure(note=str(reason))
    return math.nan
