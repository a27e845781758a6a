"""The command that shows how training images are varied: `allcls augment`.

Its pictures come from the very functions that training calls.
"""

import argparse
import dataclasses
import functools
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from allcls_jax import config_files, config_rules, terminal
from allcls_jax.command_line import Parser, run
from allcls_jax.config import AugmentConfig, Config, DataConfig
from allcls_jax.data import contact_sheet, files, synthetic, transforms
from allcls_jax.data.cells import ImageSource
from allcls_jax.data.contact_sheet import GridRow
from allcls_jax.data.variations import VARIATIONS
from allcls_jax.errors import InputError

_FLAG = "config.augment."
_MOST_PICTURES = 24  # in a row


def main(argv: Sequence[str] | None = None) -> int:
    """Draws variations: `augment [PATH] --out FILE`. Returns the exit code."""
    args = parser().parse_args(argv)
    return run(lambda: draw(args))


def parser() -> Parser:
    """Returns the reader of its arguments."""
    parser = Parser(
        "augment",
        "Shows what a configuration does to training images: each variation alone, and "
        "all together.",
        "allcls augment ~/C-NMC_Leukemia --out augment.png\n"
        "allcls augment --config vgg19 --config.augment.rotation=180 "
        "--config.augment.stain=0.2 --out augment.png",
    )
    parser.add_argument(
        "path",
        type=Path,
        nargs="?",
        help="image, folder or zip of cells (default: synthetic ones)",
    )
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    parser.add_argument(
        "--config", help="whose strengths, as of allcls train (default: no variation)"
    )
    for name, kind in typing.get_type_hints(AugmentConfig).items():
        parser.add_argument(
            f"--{_FLAG}{name}",
            type=_boolean if kind is bool else kind,
            metavar="true" if kind is bool else "STRENGTH",
            help="in place of the configuration's",
        )
    parser.add_argument(
        "--cells", type=int, default=3, help="how many different ones (%(default)s)"
    )
    parser.add_argument(
        "--draws", type=int, default=2, help="columns of each cell (%(default)s)"
    )
    return parser


def draw(args: argparse.Namespace) -> None:
    """Draws the sheet as the arguments of `parser` say.

    Raises:
      InputError: if the configuration cannot work, there are no cells, or the file
        cannot be written.
    """
    out: Path = args.out.expanduser()
    if out.suffix.lower() != ".png":
        raise InputError(f"--out = {out}: must end in .png")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out = {out}: its folder does not exist; make it")
    most = args.cells * args.draws
    if min(args.cells, args.draws) < 1 or most > _MOST_PICTURES:
        raise InputError(
            f"--cells = {args.cells}, --draws = {args.draws}: must be at least 1, and "
            f"{_MOST_PICTURES} columns at most"
        )
    config = _configuration(args)
    names, images = _cells(args.path, config.data, args.cells)
    shown = images.repeat(args.draws, axis=0)
    rows = list(vary(shown, config.augment, seed=config.seed))
    picture = contact_sheet.draw_grid(
        f"Variations of training images ({args.config or 'no configuration'})",
        [
            f"Of {config.data.image_size} pixels; brightened, all alike. In grey: not "
            "in the configuration, shown at a strength that can be seen."
        ],
        [name for name in names for _ in range(args.draws)],
        rows,
    )
    files.write(out, picture)
    terminal.say(f"Written: {out}, {len(rows)} rows of {len(shown)} pictures")


def vary(images: np.ndarray, config: AugmentConfig, *, seed: int) -> Iterator[GridRow]:
    """Yields the images as they are, with each variation alone, and with all of them.

    A variation that the configuration leaves out is shown nevertheless, in grey. In all
    rows an image draws the same numbers.

    Args:
      images: (n, size, size, 3) uint8.
      config: the strengths.
      seed: of what is drawn.
    """
    yield GridRow("original", "as the network is tested on it", False, list(images))
    for name, variation in VARIATIONS.items():
        strength = getattr(config, name)
        shown = strength or variation.visible
        alone = dataclasses.replace(AugmentConfig(), **{name: shown})
        pictures = _varied(images, alone, seed)
        yield GridRow(name, variation.told(shown), not strength, pictures)
    varies = config.dihedral or config.continuous
    text = "as the configuration says" if varies else "the configuration varies nothing"
    yield GridRow("all together", text, False, _varied(images, config, seed))


def _varied(
    images: np.ndarray, config: AugmentConfig, seed: int
) -> Sequence[np.ndarray]:
    """Returns each image varied, rounded to uint8."""
    # JAX takes most of a second, which --help and a typing error need not wait for.
    import jax
    import jax.numpy as jnp

    from allcls_jax.data import augmentation

    if config.dihedral:
        view = np.random.default_rng(seed).integers(0, 8, len(images), np.int32)
        turned = augmentation.turn(jnp.asarray(images), jnp.asarray(view))
        images = np.asarray(turned)
    step = jax.jit(functools.partial(augmentation.augment, config=config))
    values = np.asarray(step(images, jax.random.key(seed)))
    return list(np.rint(values).astype(np.uint8))


def _configuration(args: argparse.Namespace) -> Config:
    """Returns what `--config` and the strengths beside it say."""
    config = config_files.read_file(args.config) if args.config else Config()
    for name in VARIATIONS:
        if (strength := getattr(args, _FLAG + name)) is not None:
            setattr(config.augment, name, strength)
    return config_rules.validate(config)


def _cells(
    path: Path | None, config: DataConfig, count: int
) -> tuple[list[str], np.ndarray]:
    """Returns names and pictures of some cells, spread over all that there are.

    Returns:
      At most `count` names, and (as many, size, size, 3) uint8.
    """
    sources: Sequence[ImageSource]
    if path is None:
        sources = [cell.source for cell in synthetic.cells(config.synthetic)]
    else:
        place = path.expanduser().absolute()
        if not place.exists():
            raise InputError(f"{path}: does not exist; give an image, folder or zip")
        sources = [
            found.source
            for found in files.walk(str(place))
            if isinstance(found, files.Found) and files.is_image(found.file)
        ]
    if not sources:
        raise InputError(f"{path}: holds no image (BMP, PNG, JPEG or TIFF)")
    rows = np.unique(np.linspace(0, len(sources) - 1, count).round().astype(int))
    chosen = [sources[row] for row in rows]
    images = [
        transforms.prepare(
            source.read(),
            name=source.name,
            max_side=None,
            crop=config.crop,
            size=config.image_size,
        )[0]
        for source in chosen
    ]
    return [Path(source.name).name for source in chosen], np.stack(images)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text}: must be true or false")
    return text.lower() == "true"


if __name__ == "__main__":
    raise SystemExit(main())
