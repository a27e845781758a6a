"""The command that audits a set of cells: `allcls audit DIR`.

It writes what `findings` finds as JSON, for people and for `--config.data.groups`, and
pictures of the pairs as a contact sheet; each is whole or not there.
"""

import argparse
import datetime
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allcls_jax import DISCLAIMER, __version__, terminal
from allcls_jax.command_line import Parser, run
from allcls_jax.config import DataSource
from allcls_jax.data import contact_sheet, files, findings, inspection, readers, twins
from allcls_jax.data.cells import ALL, HEM, CellFile
from allcls_jax.data.findings import LABELS, Findings, Pair
from allcls_jax.data.inspection import Reason
from allcls_jax.errors import InputError

# Raise it when a key of the file changes its meaning.
FORMAT = 1

# Pairs on the contact sheet, and how many of them are kept for identical ones.
_ON_SHEET, _IDENTICAL = 48, 8
# Rows of a table on the terminal; the file has all.
_SHOWN = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Audits a data set: `audit DIR --out FILE`. Returns the exit code."""
    args = parser().parse_args(argv)
    return run(lambda: audit(args), interrupted="interrupted; no file is half written")


def audit(args: argparse.Namespace) -> None:
    """Audits a data set as the arguments of `parser` say.

    Raises:
      InputError: if the cells cannot be read or the files not be written there.
    """
    begun = time.monotonic()
    out, sheet = _places(args.out, args.sheet)
    for name, highest in (("distance", 255), ("agreement", 1)):
        if not 0 < getattr(args, name) <= highest:
            raise InputError(
                f"--{name} = {getattr(args, name)}: must be above 0 and at most "
                f"{highest}"
            )
    source, cells = readers.open_source(args.source_kind, args.dir.expanduser())
    found = findings.find(cells, distance=args.distance, agreement=args.agreement)
    show(found)
    record = {
        "format": FORMAT,
        "version": __version__,
        "written": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
        "command": shlex.join(sys.orig_argv),
        "seconds": round(time.monotonic() - begun, 1),
        "source": str(source),
        "directory": str(args.dir),
        "contact_sheet": sheet.name,
        **found.to_json(),
        "disclaimer": DISCLAIMER,
    }
    files.write(out, _to_text(record).encode())
    files.write(sheet, draw_sheet(found))
    terminal.say(
        f"Written in {terminal.duration(time.monotonic() - begun)}: {out}, and the "
        f"pairs as pictures: {sheet}"
    )
    if found.pairs:
        terminal.say(
            f"Keep patients that share cells together: --config.data.groups={out}"
        )
    terminal.say(DISCLAIMER)


def show(found: Findings) -> None:
    """Writes what was found to the terminal, as tables."""
    counts = found.counts()
    across = "{:,} in two parts or folds"
    patients = len({file.cell.patient for file in found.files})
    odd = ", ".join(f"{counts[r]:,} {r}" for r in map(str, Reason) if counts[r])
    terminal.show_table(
        "Audit",
        ("", "number", "of these"),
        [
            ("images", f"{len(found.files):,}", f"{patients:,} patients"),
            (
                "broken or odd files",
                f"{sum(bool(file.oddities) for file in found.files):,}",
                odd,
            ),
            (
                "byte-identical pairs",
                f"{counts['exact_pairs']:,}",
                across.format(counts["exact_pairs_across"]),
            ),
            (
                "near-identical pairs",
                f"{counts['near_pairs']:,}",
                across.format(counts["near_pairs_across"])
                + f", {counts['near_pairs_turned']:,} turned or mirrored",
            ),
            (
                "images with a twin",
                f"{counts['images_with_twin']:,}",
                across.format(counts["images_with_twin_across"]),
            ),
            ("patients in two parts or folds", f"{counts['patients_across']:,}", ""),
            ("twins with different labels", f"{counts['label_conflicts']:,}", ""),
            (
                "groups of patients that share cells",
                f"{counts['groups']:,}",
                f"{counts['patients_in_groups']:,} patients",
            ),
        ],
    )
    _show_groups(found)
    _show_rows(
        "Twins with different labels",
        ("image", "twin", "labels"),
        [
            (one.image_id, other.image_id, f"{LABELS[one.label]} {LABELS[other.label]}")
            for one, other in map(found.cells, found.conflicts())
        ],
    )
    _show_rows(
        "Patients in two parts or folds",
        ("patient", "where"),
        [(name, ", ".join(places)) for name, places in found.divided().items()],
    )
    _show_rows(
        "Broken or odd files",
        ("image", "reason", "detail"),
        [
            (file.cell.image_id, reason, detail)
            for file in found.files
            for reason, detail in file.oddities
        ],
    )


def draw_sheet(found: Findings) -> bytes:
    """Returns a PNG of pairs: the least certain near ones first, then identical ones.

    The first picture of a pair is turned as its twin is.
    """
    near = sorted(
        (pair for pair in found.pairs if not pair.identical),
        key=lambda pair: pair.agreement,
    )
    same = [pair for pair in found.pairs if pair.identical]
    kept = min(len(same), max(_IDENTICAL, _ON_SHEET - len(near)))
    chosen = [*near[: _ON_SHEET - kept], *same[:kept]]
    return contact_sheet.draw(
        f"{len(chosen)} of {len(found.pairs):,} pairs of images that show the same cell"
        if chosen
        else "No two images show the same cell",
        [
            f"Near-identical pairs first, those nearest to the threshold (texture "
            f"agrees by {found.agreement:g}) at the top; then byte-identical ones. "
            "Brightened."
        ],
        [_card(pair, *found.cells(pair)) for pair in chosen],
    )


def parser() -> Parser:
    """Returns the reader of its arguments."""
    parser = Parser(
        "audit",
        "Finds broken files, images of the same cell (also turned, mirrored, shifted "
        "or encoded anew), and patients that share cells.",
        "allcls audit ~/C-NMC_Leukemia --out audit.json\n"
        "allcls train --config vgg19:cv --config.data.dir=$HOME/C-NMC_Leukemia "
        "--config.data.groups=audit.json",
    )
    parser.add_argument("dir", type=Path, help="folder, zip or csv of cell images")
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument(
        "--sheet", type=Path, help="PNG of the pairs (default: named and placed as OUT)"
    )
    parser.add_argument(
        "--source-kind",
        type=DataSource,
        choices=[DataSource.CNMC, DataSource.FOLDER],
        help="default: told from the layout",
    )
    parser.add_argument(
        "--distance",
        type=float,
        default=twins.DISTANCE,
        help="compare the texture of cells whose thumbnails differ by at most so many "
        "grey levels, root mean square (%(default)s)",
    )
    parser.add_argument(
        "--agreement",
        type=float,
        default=twins.AGREEMENT,
        help="call cells the same whose texture correlates at least so much "
        "(%(default)s)",
    )
    return parser


def _places(out: Path, sheet: Path | None) -> tuple[Path, Path]:
    """Returns where JSON and PNG go, before an hour's work rather than after it."""
    out = out.expanduser()
    sheet = sheet.expanduser() if sheet else out.with_suffix(".png")
    if sheet.suffix.lower() != ".png":
        raise InputError(f"--sheet = {sheet}: must end in .png")
    if out.suffix.lower() != ".json":
        raise InputError(f"--out = {out}: must end in .json")
    for name, path in (("out", out), ("sheet", sheet)):
        if path.is_dir():
            raise InputError(f"--{name} = {path}: is a folder; name a file")
        if not path.absolute().parent.is_dir():
            raise InputError(
                f"--{name} = {path}: its folder does not exist; make it, or name "
                "another one"
            )
        if not os.access(path.absolute().parent, os.W_OK):
            raise InputError(
                f"--{name} = {path}: its folder cannot be written; give permission, or "
                "name another one"
            )
    return out, sheet


def _to_text(record: dict[str, Any]) -> str:
    """Returns JSON with one line for every pair, group, file and count."""
    lines = []
    for key, value in record.items():
        if isinstance(value, list) and value:
            items = (f"    {json.dumps(item)}" for item in value)
            text = "[\n" + ",\n".join(items) + "\n  ]"
        else:
            text = json.dumps(value, indent=2).replace("\n", "\n  ")
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _show_groups(found: Findings) -> None:
    of_patient = {name: group for group in found.groups for name in group.patients}
    images = dict.fromkeys(found.groups, 0)
    classes: dict[findings.Group, set[int]] = {group: set() for group in found.groups}
    for file in found.files:
        if group := of_patient.get(file.cell.patient):
            images[group] += 1
            classes[group].add(file.cell.label)
    _show_rows(
        "Patients that share cells",
        ("patients", "class", "images", "weakest link"),
        [
            (
                " ".join(group.patients),
                "/".join(LABELS[label] for label in sorted(classes[group])[::-1]),
                f"{images[group]:,}",
                f"{group.weakest:.2f}",
            )
            for group in sorted(found.groups, key=lambda group: -images[group])
        ],
    )
    for group in found.groups:
        if {ALL, HEM} <= classes[group]:
            terminal.warn(
                f"{' '.join(group.patients)} share cells and are of both classes; look "
                "at the contact sheet"
            )
        if 2 * images[group] > len(found.files) and len(found.groups) > 1:
            terminal.warn(
                f"one group holds {images[group]:,} of {len(found.files):,} images: "
                "false pairs may have joined it; raise --agreement"
            )


def _show_rows(
    title: str, header: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """Writes a table with its first rows, or nothing where there are none."""
    if rows:
        terminal.show_table(title, header, rows[:_SHOWN])
        if len(rows) > _SHOWN:
            terminal.say(f"… and {len(rows) - _SHOWN:,} more in the file")


def _card(pair: Pair, one: CellFile, other: CellFile) -> contact_sheet.Card:
    _, first = inspection.clean_image(one, one.source.read())
    _, second = inspection.clean_image(other, other.source.read())
    turns, mirror = pair.view
    turn = [f"{90 * turns}° turned"] * bool(turns) + ["mirrored"] * mirror
    if pair.identical:
        likeness = "byte-identical"
    else:
        likeness = ", ".join(
            [f"texture {pair.agreement:.2f}, distance {pair.distance:.1f}", *turn]
        )
    places = {findings.place(one), findings.place(other)}
    return contact_sheet.Card(
        pictures=(twins.turned(first, pair.view), second),
        captions=(one.image_id, other.image_id),
        lines=(
            likeness,
            f"patient {one.patient}"
            if one.patient == other.patient
            else f"patients {one.patient} and {other.patient}",
            " and ".join(sorted(places))
            + f", {' and '.join(sorted({LABELS[one.label], LABELS[other.label]}))}",
        ),
        marked=one.label != other.label,
    )


if __name__ == "__main__":
    raise SystemExit(main())
