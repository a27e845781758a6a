"""From a path to the list of its cells, whatever its layout.

A reader that cannot name each image's patient raises; labels of C-NMC's final part are
never taken from anywhere.
"""

import csv
import io
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from allcls_jax.config import DataSource
from allcls_jax.data import cnmc, files
from allcls_jax.data.cells import (
    ALL,
    HEM,
    NO_FOLD,
    UNLABELLED,
    CellFile,
    DiskImage,
    ImageSource,
    Part,
)
from allcls_jax.errors import InputError, list_problems

# What a class may be called, in any case, as a folder or in a csv.
ALL_NAMES = ("all", "leukemia", "leukemic", "blast", "positive", "1")
HEM_NAMES = ("hem", "normal", "healthy", "negative", "0")
_LABELS: dict[str, int] = {
    **dict.fromkeys(ALL_NAMES, ALL),
    **dict.fromkeys(HEM_NAMES, HEM),
}

_FOLDS = {"": NO_FOLD, "0": 0, "1": 1, "2": 2}

_COLUMNS = ("path", "label", "patient")

_REMEDY = (
    "Expected class/patient/image folders, the classes called "
    f"{', '.join(ALL_NAMES)} or {', '.join(HEM_NAMES)}, or a csv with the columns "
    "path, label and patient (optional: part, fold), paths relative to the csv."
)

_FINAL_REFUSAL = (
    "the labels of C-NMC's final part were never published, and a csv of them that "
    "circulates is a model's guess"
)


def open_source(
    source: DataSource | None, path: Path
) -> tuple[DataSource, list[CellFile]]:
    """Returns what kind of data lies at a path, and its cells.

    Args:
      source: how to read it; None tells C-NMC 2019 by its names and folders and takes
        all else for class/patient/image folders or a csv.
      path: a folder, a zip or a csv.

    Raises:
      InputError: as `cnmc.read_cnmc` and `read_folder`.
    """
    assert source is not DataSource.SYNTHETIC, "synthetic cells are drawn, not read"
    if _is_csv(path):
        if source is DataSource.CNMC:
            raise InputError(
                f"{path}: C-NMC 2019 is read from its folder or zip, not from a csv; "
                f"leave out data.source = {str(source)!r} or give the folder"
            )
        return DataSource.FOLDER, read_folder(path)
    listing = files.list_files(path)
    if source is None:
        found = cnmc.is_cnmc(listing)
        source = DataSource.CNMC if found else DataSource.FOLDER
    if source is DataSource.CNMC:
        return source, cnmc.cells_from(listing)
    return source, _cells_of_listing(listing)


def read_folder(path: Path) -> list[CellFile]:
    """Returns the cells of class/patient/image folders or of a csv.

    In a tree, the first folder with a class's name (`ALL_NAMES`, `HEM_NAMES`) is the
    class, the next one below it the patient; folders above and below them are free.
    Image ids are paths relative to the folder that holds the class folders.

    In a csv, `label` is a class's name, and image ids are the given paths. Optional
    columns are `part` (train, prelim, final; default train) and `fold` (0, 1, 2 or
    empty). A label is empty in the final part and nowhere else. A folder or zip that
    holds one csv with these columns at its top is read by it.

    Args:
      path: a folder, a zip or a csv.

    Returns:
      The cells by part and id.

    Raises:
      InputError: listing every image without class or patient, every wrong row, a class
        without images, and all that cannot be listed.
    """
    if not _is_csv(path):
        return _cells_of_listing(files.list_files(path))
    table = path.expanduser().absolute()

    def find(name: str) -> ImageSource | None:
        file = table.parent / name
        return DiskImage(path=str(file)) if file.is_file() else None

    return _cells_of_table(DiskImage(path=str(table)), (table.parent.name,), find, [])


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and not path.is_dir()


def _cells_of_listing(listing: files.Listing) -> list[CellFile]:
    """Returns the cells by the csv above them, if there is one, or by the folders."""
    usable, unusable = [], []
    for table in listing.tables:
        depth = len(table.folders)
        if all(found.folders[:depth] == table.folders for found in listing.images):
            reason = _unusable(table.source)
            if reason:
                unusable.append(f"{table.path}: {reason}, so it is not used")
            else:
                usable.append(table)
    if not usable:
        return _cells_of_tree(listing, unusable)
    if len(usable) > 1:
        names = ", ".join(table.path for table in usable)
        raise InputError(
            f"{listing.root}: each of {names} has the columns {', '.join(_COLUMNS)}; "
            "give the path of one"
        )
    table = usable[0]
    by_path = {found.path: found.source for found in listing.images}

    def find(name: str) -> ImageSource | None:
        return by_path.get("/".join((*table.folders, name)))

    above = (*listing.above[1:], *table.folders)
    return _cells_of_table(table.source, above, find, listing.problems)


def _unusable(table: ImageSource) -> str | None:
    """Why a csv does not name cells, if so."""
    try:
        header = _header(csv.reader(io.StringIO(files.read_text(table))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return f"cannot be read ({error})"
    missing = [name for name in _COLUMNS if name not in header]
    return f"lacks the columns {', '.join(missing)}" if missing else None


def _header(rows: Iterator[list[str]]) -> list[str]:
    """Takes the first row as names of columns."""
    return [name.strip().lower() for name in next(rows, [])]


def _cells_of_tree(listing: files.Listing, unusable: Sequence[str]) -> list[CellFile]:
    """Returns the cells by class and patient folder."""
    problems = list(listing.problems)
    placed: list[tuple[files.Found, int]] = []
    for found in listing.images:
        names = [name.lower() for name in found.folders]
        depth = next((i for i, name in enumerate(names) if name in _LABELS), None)
        if depth is None:
            problems.append(f"{found.path}: in no class folder")
        elif len(names) == depth + 1:
            problems.append(
                f"{found.path}: no patient folder between it and its class folder, so "
                "its patient is not known; add one, or a csv with a patient column"
            )
        elif not names[depth + 1].isdigit() and names[depth + 1] in _LABELS:
            problems.append(f"{found.path}: a class folder where the patient's belongs")
        elif cnmc.in_final_part((*listing.above, *found.folders)):
            problems.append(f"{found.path}: {_FINAL_REFUSAL}")
        else:
            placed.append((found, depth))
    # The same data has the same ids whether the folder, one above, or a zip is given.
    shared = _shared_start([found.folders[:depth] for found, depth in placed])
    cells = [
        CellFile(
            image_id="/".join((*found.folders[shared:], found.file)),
            patient=found.folders[depth + 1],
            label=_LABELS[found.folders[depth].lower()],
            source=found.source,
        )
        for found, depth in placed
    ]
    cells, doubles = files.without_copies(cells)
    problems += doubles
    if problems or not cells:
        problems += unusable
    return _checked(str(listing.root), cells, problems)


def _cells_of_table(
    table: ImageSource,
    above: Sequence[str],
    find: Callable[[str], ImageSource | None],
    problems: Sequence[str],
) -> list[CellFile]:
    """Returns the cells that a csv names.

    Args:
      table: the csv.
      above: names of folders that the csv lies in.
      find: returns the image at a path relative to the csv, or None.
      problems: found before.
    """
    problems = list(problems)
    if reason := _unusable(table):
        raise list_problems(table.name, [*problems, reason], remedy=_REMEDY)
    reader = csv.reader(io.StringIO(files.read_text(table)))
    header = _header(reader)
    cells: dict[str, CellFile | None] = {}
    try:
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                problems.append(
                    f"line {reader.line_num}: {len(row)} cells under {len(header)} "
                    "headings"
                )
                continue
            record = dict(zip(header, (cell.strip() for cell in row), strict=True))
            # Both separators occur in tables written on Windows.
            name = posixpath.normpath(record["path"].replace("\\", "/"))
            if name in cells:
                problems.append(f"line {reader.line_num}: a second row for {name}")
                continue
            final = cnmc.in_final_part((*above, *name.split("/")))
            rules = list(_broken_rules(record, final=final))
            source = find(name) if files.is_image(name) else None
            if source is None and not rules:
                rules.append(
                    "no such image beside the csv (BMP, PNG, JPEG or TIFF, its path "
                    "relative to the csv)"
                )
            problems += [f"line {reader.line_num}: {name}: {rule}" for rule in rules]
            cells[name] = None
            if source is not None and not rules:
                cells[name] = _cell_of_row(name, record, source)
    except csv.Error as error:
        problems.append(f"line {reader.line_num}: {error}")
    return _checked(table.name, [cell for cell in cells.values() if cell], problems)


def _broken_rules(record: dict[str, str], *, final: bool) -> Iterator[str]:
    """Yields what is wrong with one row, its image aside."""
    label, part = record["label"].lower(), record.get("part", "").lower()
    if not record["path"] or re.match(r"[A-Za-z]:|/|\\", record["path"]):
        yield "the path must be relative to the csv"
    if not record["patient"]:
        yield "the patient is empty"
    if part not in ("", *Part):
        yield f"part {part!r} must be {', '.join(Part)} or empty"
    if record.get("fold", "") not in _FOLDS:
        yield f"fold {record['fold']!r} must be 0, 1, 2 or empty"
    if part == Part.FINAL or final:
        if label:
            yield f"label {label!r}, but {_FINAL_REFUSAL}; empty the label"
        if part != Part.FINAL:
            yield "an image of the final part; its part must be final"
    elif label not in _LABELS:
        yield f"label {label!r} must be one of {', '.join(_LABELS)}"


def _cell_of_row(name: str, record: dict[str, str], source: ImageSource) -> CellFile:
    """The cell of a row that breaks no rule."""
    part = Part(record.get("part", "").lower() or Part.TRAIN)
    return CellFile(
        image_id=name,
        patient=record["patient"],
        label=_LABELS.get(record["label"].lower(), UNLABELLED),
        part=part,
        fold=_FOLDS[record.get("fold", "")],
        source=source,
        max_side=cnmc.SIDE if part is Part.FINAL else None,
    )


def _checked(
    where: str, cells: Sequence[CellFile], problems: list[str]
) -> list[CellFile]:
    """Returns the cells in order if nothing at all is wrong."""
    counts = Counter(cell.label for cell in cells)
    if not cells and not problems:
        problems.append("no images")
    if counts[ALL] + counts[HEM]:
        for name, label in (("ALL", ALL), ("HEM", HEM)):
            if not counts[label]:
                problems.append(f"no image of class {name}")
    if problems:
        raise list_problems(where, problems, remedy=_REMEDY)
    return files.in_order(cells)


def _shared_start(paths: Sequence[tuple[str, ...]]) -> int:
    """The number of leading folders that all paths share."""
    if not paths:
        return 0
    first, last = min(paths), max(paths)
    pairs = zip(first, last, strict=False)
    return next(
        (i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(last))
    )
