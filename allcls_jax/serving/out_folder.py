"""The folder that a verb writes: what may be replaced, and how the files are called.

No name of an image leads outside it, no two images share an output, and nothing is
replaced or removed but what an earlier run left.
"""

import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from allcls_jax import terminal
from allcls_jax.errors import InputError
from allcls_jax.serving.prediction.inputs import Picture, PictureList

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
            "replace what an earlier run left in it"
        )


def check_foreign(out: Path, names: Iterable[str]) -> None:
    """Raises `InputError` if any of these names is taken.

    Args:
      out: the folder.
      names: of what would be written, less what an earlier run left.
    """
    found = sorted(name for name in names if os.path.lexists(out / name))
    if found:
        more = f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""
        raise InputError(
            f"--out={out}: {found[0]}{more} is in the way and, as far as can be told, "
            "was not left by an earlier run; move it away, or give another folder"
        )


def pictures_outside(
    listed: PictureList, out: Path, *, unit: str = "images"
) -> tuple[int, Iterator[Picture]]:
    """Returns the pictures that do not lie in the folder to be written.

    Says how many do, which are likely an earlier run's, and how many are repeated.

    Args:
      listed: all of them.
      out: the folder; need not exist.
      unit: what the pictures are called.

    Returns:
      How many pictures there are, and the pictures.

    Raises:
      InputError: if there are none.
    """
    if listed.repeated:
        terminal.warn(
            f"{listed.repeated:,} of {listed.count:,} {unit} are listed more than "
            "once, and count as often"
        )
    if not out.is_dir():
        return listed.count, _every(listed)
    folder = out.resolve()
    inside = sum(_lies_in(folder, picture) for picture in _every(listed))
    if not inside:
        return listed.count, _every(listed)
    if inside == listed.count:
        raise InputError(
            f"--out={out}: all {inside:,} {unit} lie in it; give another folder"
        )
    terminal.warn(
        f"{inside:,} of {listed.count:,} {unit} are left out, for they lie in {out}"
    )
    rest = (picture for picture in _every(listed) if not _lies_in(folder, picture))
    return listed.count - inside, rest


def safe_stem(name: str) -> str:
    """Returns a file name without a dot that any system takes, inside any folder.

    Args:
      name: of an image, with folders, or of a zip and a name inside it; or anything.
    """
    last = own_name(name)
    # File systems differ in whether what looks alike is the same name.
    stem = unicodedata.normalize("NFKC", last.rpartition(".")[0] or last)
    plain = re.sub(r"[^\w-]", "_", stem).strip("-_")
    short = plain.encode("utf-8", "replace")[:_NAME_BYTES].decode("utf-8", "ignore")
    if not short or short.casefold() in _RESERVED:
        return f"image_{short}".rstrip("_")
    return short


def unique_stem(name: str, taken: set[str]) -> str:
    """Returns the safe stem of a name, numbered if need be; it is taken then.

    Args:
      name: as for `safe_stem`.
      taken: stems that are given already, in lower case; the new one is added.
    """
    stem = safe_stem(name)
    for number in itertools.count(1):
        tried = stem if number == 1 else f"{stem}-{number}"
        if tried.casefold() not in taken:
            taken.add(tried.casefold())
            return tried
    raise AssertionError("there is always another number")


def own_name(name: str) -> str:
    """Returns the file's own name, also of one in a zip."""
    return re.split(r"[/\\!]", name)[-1]


def _every(listed: PictureList) -> Iterator[Picture]:
    return itertools.chain.from_iterable(map(listed.block, range(listed.num_blocks)))


def _lies_in(folder: Path, picture: Picture) -> bool:
    return bool(picture.path) and folder in Path(picture.path).resolve().parents
