"""The verb `export`: a model as one file for another system.

A file appears only after it was run in its own runtime and agreed with the model; what
was found lies beside it.
"""

import contextlib
import datetime
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from allcls_jax import DISCLAIMER, __version__, terminal
from allcls_jax.command_line import Parser, run
from allcls_jax.errors import InputError
from allcls_jax.experiments.model_directory import RECORD_FILE
from allcls_jax.serving import arguments
from allcls_jax.serving.exports import to_keras, to_onnx, to_safetensors, to_stablehlo
from allcls_jax.serving.exports.check import (
    BATCH_SIZES,
    TOLERANCE,
    ExportDiffersError,
    Format,
    check,
    facts,
)
from allcls_jax.serving.model import Model, open_model

FORMATS = {
    exported.name: exported
    for exported in (
        to_onnx.FORMAT,
        to_stablehlo.FORMAT,
        to_safetensors.FORMAT,
        to_keras.FORMAT,
    )
}

_DIFFERS = 1  # the exit code


def parser() -> Parser:
    """Returns the parser of `allcls export`."""
    made = Parser(
        "export",
        "Writes a model as one file for another system: images in, calibrated\n"
        "probability out, in float32. The file is run at once on the model's check\n"
        f"cells; if it differs by more than {TOLERANCE:g}, nothing is written.",
        "allcls export runs/vgg19 --format onnx --out vgg19.onnx",
    )
    arguments.add_model(made)
    made.add_argument("--format", choices=[*FORMATS], required=True)
    suffixes = ", ".join(f"{exported.suffix}" for exported in FORMATS.values())
    made.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help=f"ends as its format does: {suffixes}; what the check found is written to "
        "FILE.check.json",
    )
    made.add_argument(
        "--overwrite", action="store_true", help="replace the files if they exist"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `allcls export`.

    Args:
      argv: arguments without the program's name and the verb; None: those of this
        process.

    Returns:
      0; 1 if the file differs from the model; 2 for what the user can mend. In both
      other cases nothing was written.
    """
    options = parser().parse_args(argv)

    def act() -> int:
        out = options.out.expanduser()
        # Before the model is opened, which may take a while.
        prepare(options.format, out, overwrite=options.overwrite)
        model = open_model(options.model)
        try:
            found = export(model, options.format, out, overwrite=options.overwrite)
        except ExportDiffersError as error:
            sys.stderr.write(f"error: {error}; nothing was written\n")
            return _DIFFERS
        _show(found, out)
        return 0

    return run(act)


def prepare(name: str, out: Path, *, overwrite: bool) -> Format:
    """Returns a format after all that can be looked at before there is a model.

    Args:
      name: a key of `FORMATS`.
      out: the file to be written.
      overwrite: whether it may be there.

    Raises:
      InputError: if the runtime is not installed, or the file cannot lie there.
    """
    exported = FORMATS[name]
    try:
        exported.version()
    except ImportError as error:
        raise InputError(
            f"--format {name}: {error.name or exported.runtime} is not installed, and "
            "no file is left that was not run; pip install 'allcls-jax[export]'"
        ) from error
    if out.suffix != exported.suffix:
        raise InputError(f"--out {out}: must end in {exported.suffix}")
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out {out}: must name a file in a folder that exists")
    if (out.parent / RECORD_FILE).exists():
        raise InputError(
            f"--out {out}: is inside a model directory, which is complete as it is; "
            "name another folder"
        )
    for path in (out, check_file(out)):
        if path.exists() and not overwrite:
            raise InputError(
                f"--out {out}: {path.name} exists already; add --overwrite, or name "
                "another file"
            )
    return exported


def check_file(out: Path) -> Path:
    """Returns where the check's result of an exported file lies."""
    return out.with_name(f"{out.name}.check.json")


def export(
    model: Model, name: str, out: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Writes a model in a format, runs the file, and keeps it if it is right.

    Args:
      model: to be written.
      name: a key of `FORMATS`.
      out: the file; `check_file(out)` appears with it.
      overwrite: whether they may be there.

    Returns:
      The content of `check_file(out)`.

    Raises:
      InputError: as `prepare`, or if the disk refuses.
      ExportDiffersError: if the file computes something else than the model.
    """
    exported = prepare(name, out, overwrite=overwrite)
    with _beside(out) as (file, result):
        exported.write(model, file)
        platforms = check(exported, file, model.check)
        with file.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        found = {
            "file": out.name,
            "file_sha256": sha256,
            "file_bytes": file.stat().st_size,
            "format": name,
            "written_by": f"allcls_jax {__version__}",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "load": exported.load,
            "check": {
                "runtime": f"{exported.runtime} {exported.version()}",
                "cells": len(model.check.images),
                "batch_sizes": list(BATCH_SIZES),
                "allowed_difference": TOLERANCE,
                "platforms": platforms,
            },
            **facts(model),
        }
        result.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        result.replace(check_file(out))
        file.replace(out)
    return found


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[tuple[Path, Path]]:
    """Yields names for an unfinished file and its check, of which nothing is left."""
    # The process id keeps two writers of one file apart; Keras asks for its suffix.
    file = out.with_name(f"{out.stem}.{os.getpid()}.tmp{out.suffix}")
    result = check_file(file)
    try:
        yield file, result
    except OSError as error:
        error.filename = str(out)  # which the user knows
        raise
    finally:
        for path in (file, result):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _show(found: dict[str, Any], out: Path) -> None:
    checked = found["check"]
    terminal.show_table(
        f"Largest difference from the model on {checked['cells']} check cells, "
        f"run by {checked['runtime']}",
        ("platform", "logits", "probability"),
        [
            (platform, result, "")
            if isinstance(result, str)
            else (platform, *(f"{result[name]:.1e}" for name in result))
            for platform, result in checked["platforms"].items()
        ],
    )
    terminal.say(f"wrote {out}, {found['file_bytes']:,} bytes, and {check_file(out)}")
    for note in found["notes"]:
        terminal.warn(note)
    terminal.say(DISCLAIMER)
