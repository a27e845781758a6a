"""From a configuration, or a command line, to packed cells.

Cells are packed on first use, in the cache; a pack that `allcls prepare` wrote
is used as it is.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from allcls_jax import terminal
from allcls_jax.command_line import Parser, run
from allcls_jax.config import DataConfig, DataSource, OnBadImage
from allcls_jax.data import readers, synthetic
from allcls_jax.data.cells import ALL, HEM, CellFile, Part
from allcls_jax.data.packing import SKIPPED_FILE, PackedCells, is_pack, pack, stamp
from allcls_jax.errors import InputError, list_problems


def open_cells(config: DataConfig, *, pack_size: int, cache_dir: Path) -> PackedCells:
    """Returns the cells that a configuration names, packing them on first use.

    Args:
      config: its `data` section, validated.
      pack_size: pixels at which images are stored.
      cache_dir: packs lie in its folder `cells`, named after what they hold.

    Raises:
      InputError: if the source cannot be read, or is a pack of another size or crop, or
        the cache cannot be written.
    """
    cells = _open(config, pack_size=pack_size, cache_dir=cache_dir)
    _warn_of_skipped(cells)
    return cells


def show_counts(cells: PackedCells) -> None:
    """Prints the numbers of images and patients by part, fold and class."""
    table = cells.table
    rows: list[tuple[object, ...]] = []
    for part in Part:
        for fold in np.unique(table.fold[table.part == part]):
            here = (table.part == part) & (table.fold == fold)
            rows += [
                (
                    part if fold < 0 else f"{part}, fold {fold}",
                    {ALL: "ALL", HEM: "HEM"}.get(int(label), "unlabelled"),
                    *_patient_counts(table.patient[here & (table.label == label)]),
                )
                for label in np.unique(table.label[here])[::-1]
            ]
    rows += [("",) * 5, ("all", "", *_patient_counts(table.patient))]
    terminal.show_table(
        f"Cells ({cells.source}, {cells.size} px)",
        ("part", "class", "patients", "images", "images of a patient"),
        rows,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Packs a data set: `prepare SOURCE --out DIR`. Returns the exit code."""
    args = parser().parse_args(argv)
    return run(lambda: prepare(args))


def parser() -> Parser:
    """Returns the reader of its arguments."""
    parser = Parser(
        "prepare",
        "Packs a set of cell images once, for fast reading.",
        "allcls prepare ~/C-NMC_Leukemia --out ~/cells\n"
        "allcls train --config vgg19 --config.data.dir=$HOME/cells",
    )
    parser.add_argument("source", type=Path, help="folder, zip or csv of cell images")
    parser.add_argument("--out", type=Path, required=True, help="the pack's folder")
    parser.add_argument(
        "--source-kind",
        type=DataSource,
        choices=[DataSource.CNMC, DataSource.FOLDER],
        help="default: told from the layout",
    )
    parser.add_argument(
        "--size", type=int, default=224, help="stored pixels (%(default)s)"
    )
    parser.add_argument("--crop", type=int, help="centre square cut out first, pixels")
    parser.add_argument(
        "--on-bad-image",
        type=OnBadImage,
        choices=list(OnBadImage),
        default=OnBadImage.ERROR,
        help="stop at images that cannot be read, or leave them out (%(default)s)",
    )
    return parser


def prepare(args: argparse.Namespace) -> None:
    """Packs a data set as the arguments of `parser` say.

    Raises:
      InputError: if a size is none, or as `pack`.
    """
    for name in ("size", "crop"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} = {value}: must be at least 1 pixel")
    source, cells = readers.open_source(args.source_kind, args.source.expanduser())
    packed = pack(
        cells,
        args.out.expanduser(),
        source=source,
        size=args.size,
        crop=args.crop,
        on_bad_image=args.on_bad_image,
    )
    _warn_of_skipped(packed)
    show_counts(packed)
    terminal.say(f"Packed in {args.out}; train on it with --config.data.dir={args.out}")


def _open(config: DataConfig, *, pack_size: int, cache_dir: Path) -> PackedCells:
    """As `open_cells`, without a word."""
    if config.dir is None:
        drawn = synthetic.cells(config.synthetic)
        return _open_in_cache(
            drawn,
            DataSource.SYNTHETIC,
            config,
            pack_size=pack_size,
            cache_dir=cache_dir,
        )
    directory = Path(config.dir).expanduser()
    if is_pack(directory):
        return _open_prepared(directory, config)
    source, cells = readers.open_source(config.source, directory)
    return _open_in_cache(
        cells, source, config, pack_size=pack_size, cache_dir=cache_dir
    )


def _open_in_cache(
    cells: Sequence[CellFile],
    source: DataSource,
    config: DataConfig,
    *,
    pack_size: int,
    cache_dir: Path,
) -> PackedCells:
    """Packs into a folder of the cache that is named after its content."""
    settings = {"size": pack_size, "crop": config.crop}
    content = stamp(cells, source=source, on_bad=config.on_bad_image, **settings)
    return pack(
        cells,
        cache_dir / "cells" / f"{source}-{pack_size}px-{content[:16]}",
        source=source,
        on_bad_image=config.on_bad_image,
        replace=True,
        **settings,
    )


def _open_prepared(directory: Path, config: DataConfig) -> PackedCells:
    """Opens what allcls prepare wrote, if it fits the configuration."""
    packed = PackedCells(directory)
    wrong = []
    if config.source not in (None, packed.source):
        wrong.append(f"data.source = {config.source}, the pack's is {packed.source}")
    if config.pack_size not in (None, packed.size) or packed.size < config.image_size:
        wrong.append(
            f"data.pack_size = {config.pack_size or config.image_size}, the pack's is "
            f"{packed.size}"
        )
    if config.crop != packed.crop:
        wrong.append(f"data.crop = {config.crop}, the pack's is {packed.crop}")
    if wrong:
        raise list_problems(
            f"{directory}: the pack does not fit the configuration",
            wrong,
            remedy="Change the configuration, or pack again with allcls prepare",
        )
    return packed


def _warn_of_skipped(cells: PackedCells) -> None:
    if cells.skipped:
        terminal.warn(
            f"{len(cells.skipped)} images could not be read and are left out; they are "
            f"listed in {cells.directory.absolute() / SKIPPED_FILE}"
        )


def _patient_counts(patients: np.ndarray) -> tuple[str, str, str]:
    """Returns the numbers of patients and images, and their spread, as text."""
    counts = np.unique(patients, return_counts=True)[1]
    spread = f"{counts.min()} … {np.median(counts):.0f} … {counts.max()}"
    return f"{len(counts):,}", f"{counts.sum():,}", spread


if __name__ == "__main__":
    raise SystemExit(main())
