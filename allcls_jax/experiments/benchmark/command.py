"""The command: `python tools/benchmark.py --out FILE.json`."""

import argparse
import os
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from allcls_jax import terminal
from allcls_jax.atomic import write_atomically
from allcls_jax.command_line import Parser, run
from allcls_jax.errors import InputError
from allcls_jax.experiments.benchmark import record as records

_NOTES = (
    "All weights are random: they do not change the time.",
    "Medians, taken in turns with the peers, warm-up excluded; whole recipes and "
    "commands once.",
)
_QUICK = "Small sizes, to try out the program: no figure to quote."


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, and writes what it found. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    typed = _command(argv)
    return run(
        lambda: measure(args, typed), interrupted="interrupted; nothing was written"
    )


def measure(args: argparse.Namespace, typed: str) -> int:
    """Measures as the arguments of `parser` say, and writes what it found.

    Args:
      args: the arguments.
      typed: the command line that they were read from.

    Returns:
      The exit code: 1 if something could not be measured.

    Raises:
      InputError: if an argument cannot be used.
    """
    _check(args)
    failed: list[str] = []
    if not args.show:
        # Peers that measure in turns with us need memory of the device too.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            found, failed = _measure(args, Path(folder), typed)
        if args.rows and args.out.exists():
            found = found.beside(records.read(args.out).get(found.platform))
        records.write(args.out, found)
    _publish(args)
    for failure in failed:
        sys.stderr.write(f"failed: {failure}\n")
    return 1 if failed else 0


def parser() -> Parser:
    """Returns the reader of its arguments."""
    parser = Parser(
        "benchmark",
        "Measures this package beside its peers, on the GPU if there is one: Keras on "
        "JAX, torch, ONNX Runtime, Pillow, OpenCV, each where installed.",
        "allcls benchmark --out benchmark.json",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="the JSON to write; what it holds of another platform, or of other "
        "--rows, is kept. A picture is written beside it",
    )
    parser.add_argument(
        "--readme", type=Path, help="file whose table between the marks is rewritten"
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="ROW",
        help="which to measure; a name that is not known lists them (default: all)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, to try out the program"
    )
    parser.add_argument("--data", type=Path, help="folder of real cells")
    parser.add_argument(
        "--folder", type=Path, help="for some gigabytes meanwhile (default: temporary)"
    )
    parser.add_argument(
        "--show",
        action="store_true",
        help="measure nothing: table, picture and README from OUT as it is",
    )
    return parser


def _check(args: argparse.Namespace) -> None:
    """Refuses what would fail after an hour's work rather than before it."""
    if args.out.suffix.lower() != ".json":
        raise InputError(f"--out = {args.out}: must end in .json")
    if not args.out.absolute().parent.is_dir():
        raise InputError(f"--out = {args.out}: its folder does not exist; make it")
    if args.show and not args.out.is_file():
        raise InputError(f"--out = {args.out}: there is no such file to show")
    if args.out.exists():
        records.read(args.out)
    if args.data is not None and not args.data.exists():
        raise InputError(f"--data = {args.data}: there is no such folder")


def _measure(
    args: argparse.Namespace, folder: Path, typed: str
) -> tuple[records.Record, list[str]]:
    """Returns the record, and what went wrong.

    Args:
      args: parsed.
      folder: for what is needed meanwhile; empty.
      typed: the command, for the record.
    """
    # Most of a second, which --help need not wait for.
    import jax

    from allcls_jax.experiments.benchmark import bench as benches
    from allcls_jax.experiments.benchmark.rows import ROWS
    from allcls_jax.experiments.provenance import provenance, version
    from allcls_jax.training import compilation

    chosen = args.rows or list(ROWS)
    if unknown := [name for name in chosen if name not in ROWS]:
        raise InputError(
            f"--rows = {' '.join(unknown)}: not known; there are {' '.join(ROWS)}"
        )
    # "Compiled beforehand" is what a user's second run finds.
    compilation.keep_compiled(folder)
    kind = "cpu" if jax.default_backend() == "cpu" else "gpu"
    hardware = _hardware(jax.devices()[0].device_kind, kind)
    if args.rows and args.out.exists():
        records.check_machine(records.read(args.out).get(kind), hardware)
    sizes = benches.GPU if kind == "gpu" else benches.CPU
    bench = benches.Bench(
        sizes=benches.QUICK if args.quick else sizes,
        platform=kind,
        folder=folder,
        data=args.data,
    )
    rows, failed = [], []
    for name in chosen:
        terminal.say(f"measuring {name}")
        try:
            rows += list(ROWS[name](bench))
        except Exception as error:
            # An hour's other rows are worth keeping; the exit code tells of this one.
            traceback.print_exc()
            failed.append(f"{name}: {type(error).__name__}: {error}")
    top, origin = bench.ceilings, provenance()
    found = records.Record(
        platform=kind,
        hardware=hardware,
        notes=[*_NOTES, *[_QUICK] * args.quick],
        ceilings={"matmul": top.matmul, "copy": top.copy, **top.settings},
        rows=rows,
        provenance={
            **origin,
            "command": typed,
            "versions": origin["versions"]
            | {name: version(name) for name in records.PACKAGES},
        },
    )
    return found, failed


def _publish(args: argparse.Namespace) -> None:
    """Shows what the file holds: on the terminal, as a picture, in the README."""
    from allcls_jax.experiments.benchmark import table

    found = records.read(args.out)
    for one in found.values():
        table.show(one)
    write_atomically(args.out.with_suffix(".png"), table.picture(found))
    if args.readme is not None:
        table.rewrite(args.readme, found)
    terminal.say(f"Written: {args.out} and {args.out.with_suffix('.png')}")


def _command(argv: Sequence[str]) -> str:
    """Returns what was typed, without this machine's folders."""
    told = [Path(word).name if Path(word).is_absolute() else word for word in argv]
    return shlex.join(["python", "tools/benchmark.py", *told])


def _hardware(device: str, kind: str) -> str:
    """Returns the name of what was measured on."""
    from allcls_jax.experiments.benchmark.peer_networks import cores

    processor = next(_processors(), platform.processor() or platform.machine())
    host = f"{processor}, {cores()} cores"
    return host if kind == "cpu" else f"{device} ({host})"


def _processors() -> Iterator[str]:
    """Yields the processors' names that Linux tells."""
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                yield line.partition(":")[2].strip()


if __name__ == "__main__":
    raise SystemExit(main())
