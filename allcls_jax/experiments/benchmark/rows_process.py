"""Rows of whole commands, each in a fresh process."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import allcls_jax
from allcls_jax.experiments.benchmark import memory, recipe, timing
from allcls_jax.experiments.benchmark.bench import Bench
from allcls_jax.experiments.benchmark.record import Figure, Row

_CONFIG = '''"""The defaults."""

from allcls_jax.config import Config


def get_config() -> Config:
    """Returns them."""
    return Config()
'''


def start(bench: Bench) -> Iterator[Row]:
    """Yields `--help`."""
    taken = [
        timing.seconds(lambda: _run(bench.folder, ["--help"]))
        for _ in range(bench.sizes.repeats)
    ]
    yield bench.row(
        "help",
        settings="",
        unit="s",
        ours=timing.figure(taken),
    )


def second_run(bench: Bench) -> Iterator[Row]:
    """Yields the whole command with a warm cache, against the first time."""
    sizes = bench.sizes
    config = bench.folder / "config.py"
    config.write_text(_CONFIG, encoding="utf-8")
    drawn = recipe.synthetic(sizes.process_images)
    fields = {
        "model.name": bench.model,
        "model.weights": "random",
        "data.image_size": sizes.image_size,
        "data.limit": sizes.process_images,
        "data.synthetic.num_images": drawn.num_images,
        "data.synthetic.num_patients": drawn.num_patients,
        "train.num_epochs": sizes.process_epochs,
        "cache_dir": bench.new_folder("cache"),
    }
    if bench.data is not None:
        fields["data.dir"] = bench.data
    flags = [f"--config={config}"]
    flags += [f"--config.{name}={value}" for name, value in fields.items()]

    def once() -> Figure:
        workdir = bench.new_folder("run") / "workdir"
        command = [*flags, f"--workdir={workdir}"]
        return timing.figure([timing.seconds(lambda: _run(bench.folder, command))])

    first, second = once(), once()
    yield bench.row(
        "second run",
        settings=f"{bench.model}, {sizes.process_images:,} images, "
        f"{sizes.process_epochs} epochs; cells packed, features computed and programs "
        "compiled by the first",
        unit="s",
        ours=second,
        peers={"first run": first},
        against="first run",
    )


def growth(bench: Bench) -> Iterator[Row]:
    """Yields memory and time of many images, against few: packing and a whole run."""
    few, many = memory.measure(
        bench.sizes.memory_images, whole_run=True, folder=bench.folder
    )
    settings = (
        f"{few.images:,} images {few.peak_bytes / 1e6:,.0f} MB, {few.seconds:,.0f} s; "
        f"{many.images:,} images {many.peak_bytes / 1e6:,.0f} MB, "
        f"{many.seconds:,.0f} s; small pictures of noise, packed and streamed from "
        "disk through a tiny network"
    )
    yield bench.row(
        "memory",
        Figure(many.peak_bytes / few.peak_bytes, count=1),
        unit="",
        settings=settings,
    )
    each = [peak.seconds / peak.images for peak in (few, many)]
    yield bench.row(
        "linear", Figure(each[1] / each[0], count=1), unit="", settings=settings
    )


def _run(folder: Path, arguments: Sequence[str]) -> None:
    """Runs the command to its end.

    Raises:
      RuntimeError: with the last line that it wrote, if it fails.
    """
    with (folder / "output.txt").open("w+") as output:
        done = subprocess.run(
            [sys.executable, "-m", "allcls_jax.main", *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=Path(allcls_jax.__file__).parents[1],
            check=False,
        )
        output.seek(0)
        lines = output.read().strip().splitlines()
    if done.returncode:
        raise RuntimeError(lines[-1] if lines else f"exit code {done.returncode}")
