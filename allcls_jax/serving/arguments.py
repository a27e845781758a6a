"""Arguments that several verbs take, and what holds where they are not given."""

from pathlib import Path

from allcls_jax.command_line import Parser

COVERAGE = 0.9  # of the images, those that a model is surest of, get a decision
BATCH_SIZE = 32


def add_model(parser: Parser) -> None:
    """Adds MODEL."""
    parser.add_argument(
        "model", metavar="MODEL", help="model directory, a run's folder, or a zip"
    )


def add_paths(parser: Parser) -> None:
    """Adds PATH, of which there may be several; the verb tells what they may be."""
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", help="images in any of the forms above"
    )


def add_out_folder(parser: Parser) -> None:
    """Adds `--out DIR`."""
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="folder to write"
    )


def add_threshold(parser: Parser) -> None:
    """Adds `--threshold`, for `Model.threshold`."""
    parser.add_argument(
        "--threshold",
        metavar="NAME|NUMBER",
        help="probability above which an image is called ALL: a number in (0, 1), or a "
        "name that the model has, such as youden (default: the model's own)",
    )


def add_coverage(parser: Parser) -> None:
    """Adds `--coverage`, for `Model.prediction`."""
    parser.add_argument(
        "--coverage",
        type=float,
        default=COVERAGE,
        help="share of images to decide; of those nearest to the threshold the model "
        f"abstains (default: {COVERAGE})",
    )


def add_batch_size(parser: Parser) -> None:
    """Adds `--batch_size`, for `open_model`."""
    parser.add_argument(
        "--batch_size",
        metavar="N",
        type=int,
        help=f"images that go through the network at once (default: {BATCH_SIZE}, or "
        "so many more that each device gets as many)",
    )
