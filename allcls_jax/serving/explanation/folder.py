"""The folder that `explain` writes: how it comes to be, and which files are its own."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from allcls_jax.serving.out_folder import check_foreign, safe_stem

RECORD_FILE, GRID_FILE, MAPS_FILE = "explain.json", "grid.png", "maps.npz"


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[tuple[Path, Path]]:
    """Gives a folder for what will be in `out`, and one for what will not.

    Left without an exception, `out` has it all: a new one at once, one that was there
    file by file. In that the former record goes first and the new one comes last: where
    it is, all is there.

    Raises:
      InputError: on leaving, if a file that is not a former explanation's would be
        replaced; `out` is as it was then.
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
            former = _former(out)
            check_foreign(out, new - former)
            (out / RECORD_FILE).unlink(missing_ok=True)
            for name in former - new:
                (out / name).unlink(missing_ok=True)
            for name in sorted(new, key=lambda name: (name == RECORD_FILE, name)):
                (folder / name).replace(out / name)
        else:
            folder.replace(out)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def check_fixed(out: Path) -> None:
    """Raises `InputError` if files not an explanation's have names that each one has.

    The names of pictures are known only when they are made.
    """
    check_foreign(out, {RECORD_FILE, GRID_FILE} - _former(out))


def _former(out: Path) -> set[str]:
    """Returns the names of files that an explanation has left in a folder."""
    try:
        record = json.loads((out / RECORD_FILE).read_text(encoding="utf-8"))
        files = {str(image["file"]) for image in record["images"] if "file" in image}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    # It might have been written by anyone: nothing outside is ever touched.
    own = {name for name in files if name == f"{safe_stem(name)}.png"}
    own |= {RECORD_FILE, GRID_FILE, MAPS_FILE}
    return {name for name in own if (out / name).is_file()}
