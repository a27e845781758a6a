"""Peak memory and time of packing and reading, by the number of images.

`python -m allcls_jax.experiments.benchmark.memory --images 10661 100000` tells whether
memory stays flat and time linear; each number is measured in a fresh process. The cells
are the built-in ones, in their patients and folds; their pictures are small squares of
noise, unless `--drawn` asks for the real drawings (20 ms each).
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import allcls_jax
from allcls_jax import config_rules, terminal
from allcls_jax.command_line import Parser
from allcls_jax.config import (
    Config,
    DataConfig,
    DataSource,
    ModelConfig,
    ModelName,
    OnBadImage,
    Place,
    SyntheticConfig,
    TrainConfig,
)
from allcls_jax.data import pipeline, synthetic, transforms
from allcls_jax.data.cells import CellFile
from allcls_jax.data.packing import PackedCells, pack

_MODULE = "allcls_jax.experiments.benchmark.memory"

# Pixels, of the stand-ins and of what is packed.
_SIDE = 64
_PATIENTS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peak:
    """What one process took.

    Attributes:
      images: packed and read.
      peak_bytes: of its resident memory.
      seconds: from the first image to the end.
    """

    images: int
    peak_bytes: int
    seconds: float


def measure(
    num_images: Sequence[int],
    *,
    drawn: bool = False,
    whole_run: bool = False,
    folder: Path | None = None,
) -> list[Peak]:
    """Measures each number of images in a process of its own.

    Args:
      num_images: at least 100 each.
      drawn: whether the built-in cells are really drawn.
      whole_run: whether a tiny network is trained for an epoch and evaluated, images
        streamed from disk, instead of reading every image once.
      folder: for temporary packs, on the disk to be used; None: the system's.

    Raises:
      RuntimeError: with the last line of a process that failed.
    """
    flags = ["--drawn"] * drawn + ["--whole-run"] * whole_run
    flags += [f"--folder={folder}"] if folder else []
    peaks = []
    for number in num_images:
        done = subprocess.run(
            [sys.executable, "-m", _MODULE, f"--child={number}", *flags],
            capture_output=True,
            text=True,
            # `-m` finds the package there, installed or not.
            cwd=Path(allcls_jax.__file__).parents[1],
            check=False,
        )
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or "no message").splitlines()[-1])
        peaks.append(Peak(**json.loads(done.stdout.splitlines()[-1])))
    return peaks


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit code."""
    parser = Parser(
        "",
        "Measures peak memory and time by the number of images.",
        f"python -m {_MODULE}",
    )
    parser.prog = f"python -m {_MODULE}"  # no verb
    parser.add_argument(
        "--images", type=int, nargs="+", default=[10_661, 100_000], metavar="N"
    )
    parser.add_argument(
        "--drawn", action="store_true", help="draw the built-in cells (20 ms each)"
    )
    parser.add_argument(
        "--whole-run",
        action="store_true",
        help="train a tiny network for an epoch and evaluate it, streaming from disk",
    )
    parser.add_argument(
        "--folder", type=Path, help="for temporary packs (default: the system's)"
    )
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child is not None:
        peak = _take(
            args.child, args.folder, drawn=args.drawn, whole_run=args.whole_run
        )
        sys.stdout.write(json.dumps(dataclasses.asdict(peak)) + "\n")
        return 0
    peaks = measure(
        args.images, drawn=args.drawn, whole_run=args.whole_run, folder=args.folder
    )
    first = peaks[0]
    terminal.show_table(
        "Packing and a run" if args.whole_run else "Packing and reading",
        ("images", "peak MB", "of the first", "seconds", "images/s"),
        [
            (
                f"{peak.images:,}",
                f"{peak.peak_bytes / 1e6:,.0f}",
                f"{peak.peak_bytes / first.peak_bytes:.3f}",
                f"{peak.seconds:.1f}",
                f"{peak.images / peak.seconds:,.0f}",
            )
            for peak in peaks
        ],
    )
    return 0


@dataclasses.dataclass(frozen=True, slots=True)
class _Noise:
    """A small picture that stands in for a drawing; each is another one."""

    index: int

    @property
    def name(self) -> str:
        return f"noise {self.index}"

    def read(self) -> bytes:
        image = np.zeros((_SIDE, _SIDE, 3), np.uint8)
        rng = np.random.default_rng(self.index)
        inside = slice(4, _SIDE - 4)
        shape = image[inside, inside].shape
        image[inside, inside] = rng.integers(60, 200, shape, np.uint8)
        return transforms.encode_png(image)

    def stamp(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True, slots=True)
class _StandIns(Sequence[CellFile]):
    """Cells whose pictures are noise."""

    cells: Sequence[CellFile]

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: int) -> CellFile:  # pyright: ignore[reportIncompatibleMethodOverride] - no slices
        if not 0 <= index < len(self):
            raise IndexError(index)
        return dataclasses.replace(self.cells[index], source=_Noise(index))


def _take(
    num_images: int, within: Path | None, *, drawn: bool, whole_run: bool
) -> Peak:
    """Packs and reads in this process."""
    begin = time.monotonic()
    cells = synthetic.cells(
        SyntheticConfig(num_images=num_images, num_patients=_PATIENTS)
    )
    with tempfile.TemporaryDirectory(dir=within) as folder:
        packed = pack(
            cells if drawn else _StandIns(cells),
            Path(folder) / "pack",
            source=DataSource.SYNTHETIC,
            size=_SIDE,
            crop=None,
            on_bad_image=OnBadImage.ERROR,
        )
        assert len(packed) == num_images
        if whole_run:
            _run(packed, Path(folder))
        else:
            _read(packed)
        seconds = time.monotonic() - begin
        return Peak(
            images=num_images, peak_bytes=_peak_bytes(), seconds=round(seconds, 3)
        )


def _read(packed: PackedCells) -> None:
    """Reads every image once, in batches."""
    images = pipeline.PackedImages(packed, None, _SIDE)
    rows = np.arange(len(packed))
    reading = pipeline.Reading(batch_size=32)
    seen = 0
    for batch in pipeline.evaluation_batches(images, packed.table, rows, reading):
        seen += int(batch["mask"].sum())
    assert seen == len(packed)


def _run(packed: PackedCells, folder: Path) -> None:
    """Trains and evaluates a tiny network."""
    # JAX takes as long to import as all else here.
    from allcls_jax.experiments import start

    config = Config(
        cache_dir=str(folder / "cache"),
        data=DataConfig(dir=str(packed.directory), image_size=_SIDE),
        model=ModelConfig(name=ModelName.TINY, weights="random"),
        train=TrainConfig(num_epochs=1, cache_features=False, keep=Place.DISK),
    )
    start.start(config_rules.validate(config), folder / "run")


def _peak_bytes() -> int:
    """Returns the largest resident memory that this process has had."""
    try:
        # Linux counts a process' parent in `ru_maxrss`, if that was larger.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        (line,) = (x for x in status.splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    raise SystemExit(main())
