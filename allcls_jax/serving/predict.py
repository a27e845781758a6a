"""The verb `predict`: what a model says of many pictures, as a table."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from allcls_jax.command_line import Parser, run
from allcls_jax.serving import arguments
from allcls_jax.serving.prediction.inputs import KINDS

# JAX takes seconds, which --help and a typing error need not wait for: it is imported
# with the job, whose `on_ray.LOCAL` this is.
_LOCAL = "local"

_WHAT = f"""Writes a table with a row for each image: the calibrated probability of ALL,
the call at a threshold, its uncertainty, whether the model abstains, and warnings
where the picture is unlike the training cells. An image that cannot be read is a
row with the reason, and the rest goes on.

PATH: {KINDS}.

Beside FILE lie FILE.json (model, settings, counts) and, where patients are known from
a csv or from the file names of C-NMC 2019, FILE.patients.csv. After an interruption the
same command goes on from FILE.part."""

_EXAMPLE = """allcls predict runs/vgg19/model cells/ --out cells.csv
allcls predict model.zip 'scans/*/*.png' list.csv --out all.parquet --threshold youden
allcls predict model cells.zip --out cells.csv --num_processes 2 --process_id 0"""


def parser() -> Parser:
    """Returns what reads the arguments."""
    made = Parser("predict", _WHAT, _EXAMPLE)
    add = made.add_argument
    arguments.add_model(made)
    arguments.add_paths(made)
    add(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help="table to write; its suffix, .csv, .jsonl or .parquet, tells the format",
    )
    arguments.add_threshold(made)
    arguments.add_coverage(made)
    arguments.add_batch_size(made)
    add("--overwrite", action="store_true", help="replace FILE, or drop another job")
    add(
        "--num_processes",
        metavar="N",
        type=int,
        default=1,
        help="processes on a shared folder, each started with the same command and its "
        "own --process_id; the last one writes FILE",
    )
    add("--process_id", metavar="I", type=int, default=0, help="of this one, from 0")
    add(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const=_LOCAL,
        help="divide the work among --num_processes actors of Ray on this machine, or "
        "of the cluster at an address (auto: the one that this machine belongs to)",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parser().parse_args(argv)

    return run(
        lambda: _predict(args, args.out.expanduser()),
        interrupted=f"interrupted; what is done is kept in {args.out}.part, and the "
        "same command goes on from there",
    )


def _predict(args: argparse.Namespace, out: Path) -> None:
    import jax

    from allcls_jax.serving.model import open_model
    from allcls_jax.serving.prediction import job, on_ray

    processes = job.Processes(
        number=args.num_processes, index=args.process_id, ray=args.ray
    )
    job.check_out(out, overwrite=args.overwrite or processes.number > 1)
    if processes.ray is not None:
        on_ray.check_installed()
        # The actors compute; a device's memory is theirs.
        jax.config.update("jax_platforms", "cpu")
    job.predict(
        open_model(args.model, batch_size=args.batch_size),
        args.paths,
        out,
        threshold=args.threshold,
        coverage=args.coverage,
        overwrite=args.overwrite,
        processes=processes,
    )
