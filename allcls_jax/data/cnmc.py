"""C-NMC 2019 in each of its layouts: whose cell a file shows, and its class.

Names and folders must agree with each other and with the csv of the preliminary part;
whatever does not fit is listed, and nothing is passed over. Labels of the final part
were never published: no csv is read for it.
"""

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from allcls_jax.data import files
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
from allcls_jax.errors import list_problems

SIDE = 450  # pixels; the final part comes as 600x600 with the cell in the middle

# The 17 patients of the final part are not told apart: one name stands for them all.
FINAL_PATIENT = "final/unknown"

PRELIM_TABLE = "C-NMC_test_prelim_phase_data_labels.csv"
_PRELIM_TABLES = (PRELIM_TABLE.lower(), "phase2.csv")
_PRELIM_COLUMNS = ("Patient_ID", "new_names", "labels")

# UID_11_2_1_all, UID_H22_31_2_hem. One subject is spelt UID_h3_… throughout.
_UID = re.compile(r"UID_(H?\d+)_\d+_\d+_(all|hem)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")
_CLASS_FOLDERS = {"all": ALL, "hem": HEM}
_FOLD_FOLDER = re.compile(r"fold[ _-]?([0-2])")
_FINAL_FOLDER = "c-nmc_test_final_phase_data"
_PART_FOLDERS = {
    Part.TRAIN: re.compile(r"training_data|c-nmc_training_data.*"),
    Part.PRELIM: re.compile(r"validation_data|c-nmc_test_prelim_phase_data.*|phase_?2"),
    Part.FINAL: re.compile(rf"testing_data|{_FINAL_FOLDER}.*|phase_?3"),
}

_LAYOUT = (
    "Expected fold_0/all/UID_….bmp and so on, the preliminary images in "
    "C-NMC_test_prelim_phase_data (or phase2) and the final ones in "
    "C-NMC_test_final_phase_data (or phase3), in any folder or zip above them."
)


def read_cnmc(path: Path) -> list[CellFile]:
    """Returns the cells of C-NMC 2019 below a folder or in a zip.

    The layouts of Kaggle, of TCIA and of the challenge are read, from a folder above
    them or an inner one, doubly nested or not, unpacked or in zips.

    Image ids are the files' stems in the training part (`UID_11_10_1_all`), and
    `prelim/<number>` and `final/<number>` in the test parts. Patients are the subjects
    (`11` and `H11` are two), of the final part all `final/unknown`. Training cells
    outside fold folders have no fold.

    Args:
      path: a folder or a zip.

    Returns:
      Cells of the training, preliminary and final part, in this order, each by id.

    Raises:
      InputError: listing every file, row and folder that breaks a rule.
    """
    return cells_from(files.list_files(path))


def is_cnmc(listing: files.Listing) -> bool:
    """Tells whether any file has a name and a folder of C-NMC 2019."""
    places = _Places(listing)
    for found in listing.images:
        place = places.of(found)
        if _UID.fullmatch(found.stem) and place.label is not None:
            return True
        # Class folders inside a part's, as in testing_data/ALL/…, are not its layout.
        if _NUMBER.fullmatch(found.stem) and place.in_test_part:
            return True
    return False


def patient_of(stem: str) -> str | None:
    """Returns the subject in a training file's name (without suffix), if it has one."""
    match = _UID.fullmatch(stem)
    return match[1].upper() if match else None


def in_final_part(folders: Sequence[str]) -> bool:
    """Tells whether a folder is C-NMC's final part by its official name."""
    return any(name.lower().startswith(_FINAL_FOLDER) for name in folders)


def cells_from(listing: files.Listing) -> list[CellFile]:
    """Returns the cells of a listing; see `read_cnmc`."""
    problems = list(listing.problems)
    places = _Places(listing)
    cells: list[CellFile] = []
    prelim: list[files.Found] = []
    for found in listing.images:
        place = places.of(found)
        if match := _UID.fullmatch(found.stem):
            rule = _training_rule(match, place)
            if rule:
                problems.append(f"{found.source.name}: {rule}")
            else:
                cells.append(_training_cell(found, match, place))
        elif not _NUMBER.fullmatch(found.stem):
            problems.append(
                f"{found.source.name}: the name is neither UID_<subject>_<image>_<cell>"
                "_<all or hem> nor a number"
            )
        elif place.part is Part.PRELIM:
            prelim.append(found)
        elif place.part is Part.FINAL:
            cells.append(_final_cell(found))
        else:
            problems.append(
                f"{found.source.name}: a number for a name, in a folder that is of "
                "neither test part"
            )
    problems += _fold_problems(cells, listing)
    cells += _prelim_cells(prelim, listing, problems)
    cells, doubles = files.without_copies(cells)
    problems += doubles
    if not cells and not problems:
        problems.append("no images")
    if problems:
        raise list_problems(
            f"{listing.root}: cannot be read as C-NMC 2019", problems, remedy=_LAYOUT
        )
    return files.in_order(cells)


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """What the folders above a file say."""

    part: Part | None
    fold: int
    label: int | None  # by the innermost folder
    in_test_part: bool  # by the innermost folder


class _Places:
    """Reads each folder's name once."""

    def __init__(self, listing: files.Listing):
        self._above = listing.above
        self._known: dict[tuple[str, ...], _Place] = {}

    def of(self, found: files.Found) -> _Place:
        place = self._known.get(found.folders)
        if place is None:
            place = _read_folders([*self._above, *found.folders])
            self._known[found.folders] = place
        return place


def _read_folders(names: Sequence[str]) -> _Place:
    """The innermost folder that says something is believed."""
    inward = [name.lower() for name in reversed(names)]
    folds = (_FOLD_FOLDER.fullmatch(name) for name in inward)
    parts = [_part_of(name) for name in inward]
    return _Place(
        part=next((part for part in parts if part), None),
        fold=next((int(match[1]) for match in folds if match), NO_FOLD),
        label=_CLASS_FOLDERS.get(inward[0]),
        in_test_part=parts[0] in (Part.PRELIM, Part.FINAL),
    )


def _part_of(folder: str) -> Part | None:
    """The part that a folder's name in lower case stands for."""
    names = _PART_FOLDERS.items()
    return next((part for part, name in names if name.fullmatch(folder)), None)


def _training_rule(match: re.Match[str], place: _Place) -> str | None:
    """The rule that a file with a training name breaks in its place, if any."""
    if place.part in (Part.PRELIM, Part.FINAL):
        return "a training image in the folder of a test part"
    if place.label is None:
        return "a training image must lie in a folder called all or hem"
    if place.label != _CLASS_FOLDERS[match[2].lower()]:
        return f"the name says {match[2]}, the folder says otherwise"
    return None


def _training_cell(found: files.Found, match: re.Match[str], place: _Place) -> CellFile:
    return CellFile(
        image_id=found.stem,
        patient=match[1].upper(),
        label=_CLASS_FOLDERS[match[2].lower()],
        fold=place.fold,
        source=found.source,
        max_side=SIDE,
    )


def _final_cell(found: files.Found) -> CellFile:
    return CellFile(
        image_id=f"final/{found.stem}",
        patient=FINAL_PATIENT,
        label=UNLABELLED,
        part=Part.FINAL,
        source=found.source,
        max_side=SIDE,
    )


def _fold_problems(cells: Sequence[CellFile], listing: files.Listing) -> Iterator[str]:
    """Yields what an incomplete copy of the training part shows."""
    training = [cell for cell in cells if cell.part is Part.TRAIN]
    folds = {cell.fold for cell in training}
    if NO_FOLD in folds and len(folds) > 1:
        outside = [cell for cell in training if cell.fold == NO_FOLD]
        yield (
            f"{len(outside)} training images, such as {outside[0].source.name}, lie "
            "outside the folders fold_0, fold_1 and fold_2, others inside"
        )
    if listing.above[-1].lower() in _CLASS_FOLDERS:
        return  # one class was asked for
    for fold in sorted(folds - {NO_FOLD} or folds):
        labels = {cell.label for cell in training if cell.fold == fold}
        for name, label in _CLASS_FOLDERS.items():
            if label not in labels:
                where = "the training part" if fold == NO_FOLD else f"fold_{fold}"
                yield f"{where} has no image in a folder called {name}"


def _prelim_cells(
    images: Sequence[files.Found], listing: files.Listing, problems: list[str]
) -> list[CellFile]:
    """Returns the preliminary part; adds what is wrong with it to `problems`."""
    table, text = _prelim_table(images, listing, problems)

    def complain(what: str) -> None:
        problems.append(f"{table}: {what}")

    rows = _prelim_rows(text, complain) if text is not None else None
    if rows is None:
        return []
    cells = []
    for found in images:
        if found.stem not in rows:
            complain(f"no row for {found.source.name}")
        elif record := rows[found.stem]:
            patient, label = record
            cells.append(
                CellFile(
                    image_id=f"prelim/{found.stem}",
                    patient=patient,
                    label=label,
                    part=Part.PRELIM,
                    source=found.source,
                    max_side=SIDE,
                )
            )
    there = {found.stem for found in images}
    for stem in rows:
        if stem not in there:
            complain(f"no image for the row of {stem}")
    return cells


def _prelim_table(
    images: Sequence[files.Found], listing: files.Listing, problems: list[str]
) -> tuple[str, str | None]:
    """Returns name and text of the csv, None where there is nothing to read."""
    tables = [t.source for t in listing.tables if t.file.lower() in _PRELIM_TABLES]
    if images and not tables:
        tables = _tables_beside(listing.root)
    if not tables:
        if images:
            problems.append(
                f"{len(images)} preliminary images, such as {images[0].source.name}, "
                f"whose patients stand only in {PRELIM_TABLE}, and it is not here; put "
                "it beside or into their folder, or move the images elsewhere"
            )
        return PRELIM_TABLE, None
    name = tables[0].name
    try:
        texts = [files.read_text(source) for source in tables]
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{name}: cannot be read ({error})")
        return name, None
    if any(text != texts[0] for text in texts):
        names = " and ".join(source.name for source in tables)
        problems.append(f"{names}: differ; keep one")
        return name, None
    if not images:
        problems.append(
            f"{name}: there are no preliminary images for it; add their folder or move "
            "the csv elsewhere"
        )
        return name, None
    return name, texts[0]


def _prelim_rows(
    text: str, complain: Callable[[str], None]
) -> dict[str, tuple[str, int] | None] | None:
    """Returns (patient, label) by the stem of the file.

    A row that breaks a rule has None instead, so that its image is not also called
    missing; a csv with other columns is None altogether.
    """
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    rows: dict[str, tuple[str, int] | None] = {}
    try:
        header = [name.strip() for name in reader.fieldnames or []]
        if not set(_PRELIM_COLUMNS) <= set(header):
            complain(
                f"has the columns {', '.join(header) or '(none)'} and needs "
                f"{', '.join(_PRELIM_COLUMNS)}"
            )
            return None
        reader.fieldnames = header
        for row in reader:
            uid, file, label = ((row[name] or "").strip() for name in _PRELIM_COLUMNS)
            where = f"line {reader.line_num}"
            stem = _without_suffix(file)
            if stem in rows:
                complain(f"{where}: a second row for {file}")
                continue
            rows[stem] = record = _prelim_record(uid, label)
            if not record:
                complain(
                    f"{where}: {file} has the Patient_ID {uid!r} and the label "
                    f"{label!r}; they must be UID_<subject>_<image>_<cell>_all and 1, "
                    "or UID_…_hem and 0"
                )
    except csv.Error as error:
        complain(f"line {reader.line_num}: {error}")
        return None
    return rows


def _prelim_record(uid: str, label: str) -> tuple[str, int] | None:
    """Returns patient and label if they are well formed and agree."""
    match = _UID.fullmatch(_without_suffix(uid))
    if not match or label != str(_CLASS_FOLDERS[match[2].lower()]):
        return None
    return match[1].upper(), int(label)


def _without_suffix(file: str) -> str:
    return file.rpartition(".")[0] or file


def _tables_beside(root: Path) -> list[ImageSource]:
    """The csv of the preliminary part beside the path that was searched."""
    try:
        beside = sorted(root.parent.iterdir())
    except OSError:
        return []
    return [
        DiskImage(path=str(file))
        for file in beside
        if file.name.lower() in _PRELIM_TABLES and file.is_file()
    ]
