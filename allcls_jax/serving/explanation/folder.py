"""The folder that `explain` writes: its names, and how it comes to be.

No name of an image leads outside it, and no two images share a picture.
"""

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from allcls_jax.errors import InputError

RECORD_FILE, GRID_FILE, MAPS_FILE = "explain.json", "grid.png", "maps.npz"

# Names that mean devices on Windows.
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul"}
    | {f"{port}{number}" for port in ("com", "lpt") for number in range(10)}
)
_NAME_BYTES = 120  # of a file's name, without suffix and number


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raises `InputError` if a folder cannot be written."""
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out={out}: its folder does not exist; make it first")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out={out}: is a file; give the name of a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(
            f"--out={out}: is not empty; give another folder, or --overwrite to "
            "replace an explanation in it"
        )


def safe_stem(name: str) -> str:
    """Returns a file name without suffix that any system takes, inside any folder.

    Args:
      name: of an image, with folders, or of a zip and a name inside it; or anything.
    """
    last = re.split(r"[/\\!]", name)[-1]
    stem = last.rpartition(".")[0] or last
    plain = re.sub(r"[^\w.-]", "_", stem).strip(".-_ ")
    short = plain.encode("utf-8", "replace")[:_NAME_BYTES].decode("utf-8", "ignore")
    if not short or short.split(".")[0].casefold() in _RESERVED:
        return f"image_{short}".rstrip("_")
    return short


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[tuple[Path, Path]]:
    """Gives a folder for what will be in `out`, and one for what will not.

    Left without an exception, `out` has it all: a new one at once, one that was there
    file by file, and the record last.
    """
    there = out.is_dir()
    # Inside it, where it may be another disk than its parent.
    hidden = Path(
        tempfile.mkdtemp(prefix=".explain-", dir=out if there else out.parent)
    )
    try:
        folder = hidden / "new"
        folder.mkdir()
        yield folder, hidden
        if there:
            new = {path.name for path in folder.iterdir()}
            for name in _former(out) - new:
                (out / name).unlink(missing_ok=True)
            for name in sorted(new, key=lambda name: (name == RECORD_FILE, name)):
                (folder / name).replace(out / name)
        else:
            folder.replace(out)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _former(out: Path) -> set[str]:
    """Returns the names of files that an explanation has left in a folder."""
    try:
        record = json.loads((out / RECORD_FILE).read_text(encoding="utf-8"))
        files = {str(image["file"]) for image in record["images"] if "file" in image}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    # It might have been written by anyone: nothing outside is ever touched.
    own = {name for name in files if name == f"{safe_stem(name)}.png"}
    return own | {GRID_FILE, MAPS_FILE}
