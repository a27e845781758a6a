import csv
import functools
import hashlib
import io
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from allcls_jax.data import audit, findings, readers, transforms
from allcls_jax.data.cells import (
    CellFile,
    CellTable,
    DiskImage,
    Part,
    table_from_rows,
)
from allcls_jax.data.cnmc import FINAL_PATIENT
from allcls_jax.data.encoding import encode
from allcls_jax.data.groups import find_groups
from allcls_jax.data.inspection import Inspected
from tests.data import layouts, pictures, planted
from tests.full_disk import room_for


class Row(NamedTuple):
    """One image of a made data set: its file, and what the csv says of it."""

    data: bytes
    patient: str
    label: str = "ALL"
    part: str = "train"
    fold: str = ""


def write(root: Path, rows: Mapping[str, Row]) -> Path:
    """Writes images and their csv, and returns the csv's path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "patient", "part", "fold"))
    writer.writerows(
        (path, row.label, row.patient, row.part, row.fold) for path, row in rows.items()
    )
    files = {path: row.data for path, row in rows.items()}
    layouts.write(root, files | {"cells.csv": text.getvalue().encode()})
    return root / "cells.csv"


def run(tmp_path: Path, rows: Mapping[str, Row], *flags: str) -> dict[str, Any]:
    """Audits a made data set and returns what was written."""
    out = tmp_path / "audit.json"
    source = write(tmp_path / "cells", rows)
    assert audit.main([str(source), "--out", str(out), *flags]) == 0
    return json.loads(out.read_text(encoding="utf-8"))


@functools.cache
def png(index: int) -> bytes:
    """Drawn cell `index`."""
    return transforms.encode_png(planted.cell(index))


def turned(index: int, turns: int = 1) -> bytes:
    """The same cell, turned and encoded anew."""
    return planted.jpeg(planted.turn(planted.cell(index), (turns, False)))


def shared_cells() -> dict[str, Row]:
    """Seven patients; one chain of three and one pair share cells."""
    return {
        "a1.png": Row(png(0), "a", fold="0"),
        "a2.png": Row(png(1), "a", fold="0"),
        "a3.png": Row(png(1), "a", fold="0"),  # twice in one patient
        "b1.png": Row(png(0), "b", fold="1"),
        "b2.png": Row(png(2), "b", fold="1"),
        "c1.jpg": Row(turned(2), "c", fold="2"),
        "c2.png": Row(png(3), "c", fold="2"),
        "d1.png": Row(png(4), "d", "HEM", fold="0"),
        "e1.jpg": Row(turned(4, 3), "e", "HEM", fold="0"),
        "f1.png": Row(png(5), "f", "HEM", fold="1"),
        "f2.png": Row(png(6), "f", "HEM", fold="2"),  # one patient in two folds
        "g1.png": Row(png(7), "g", "HEM", fold="2"),
    }


def test_everything_that_is_shared_is_told(tmp_path: Path):
    told = run(tmp_path, shared_cells())
    assert told["exact_duplicates"] == [["a1.png", "b1.png"], ["a2.png", "a3.png"]]
    near = [pair[:2] for pair in told["near_duplicates"]]
    assert near == [["b2.png", "c1.jpg"], ["d1.png", "e1.jpg"]]
    for _, _, distance in told["near_duplicates"]:
        assert 0 < distance < 4
    evidence = told["near_evidence"]
    assert [(e["quarter_turns"], e["mirrored"]) for e in evidence] == [
        (1, False),
        (3, False),
    ]
    assert all(0.9 < e["agreement"] <= 1 for e in evidence)
    assert told["groups"] == [["a", "b", "c"], ["d", "e"]]
    assert told["groups_weakest_agreement"] == [e["agreement"] for e in evidence]
    assert told["cross_fold"] == {
        "pairs": [
            ["a1.png", "b1.png", "train fold 0", "train fold 1"],
            ["b2.png", "c1.jpg", "train fold 1", "train fold 2"],
        ],
        "patients": [["f", "train fold 1", "train fold 2"]],
    }
    assert told["label_conflicts"] == []
    assert told["broken"] == []
    assert told["patients"] == list("abcdefg")
    counts = {key: value for key, value in told["counts"].items() if value}
    assert counts == {
        "exact_pairs": 2,
        "exact_pairs_across": 1,
        "near_pairs": 2,
        "near_pairs_across": 1,
        "near_pairs_turned": 2,
        "images_with_twin": 8,
        "images_with_twin_across": 4,
        "patients_across": 1,
        "groups": 2,
        "patients_in_groups": 5,
    }
    assert told["settings"]["distance"] == 10
    assert told["settings"]["agreement"] == 0.5


def test_the_terminal_tells_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(tmp_path, shared_cells())
    text = " ".join(capsys.readouterr().out.split())
    assert "images 12 7 patients" in text
    assert "byte-identical pairs 2 1 in two parts or folds" in text
    assert "near-identical pairs 2 1 in two parts or folds, 2 turned" in text
    assert "a b c ALL 7" in text
    assert "f train fold 1, train fold 2" in text
    assert "audit.json" in text
    assert "Research use only. Not a medical device." in text


def table_of(source: Path) -> CellTable:
    """What a pack of these cells would hold."""
    rows = []
    for cell in readers.open_source(None, source)[1]:
        encoded = encode(cell, size=32, crop=None)
        if not isinstance(encoded, str):
            _, digest, area = encoded
            rows.append((*cell.record(), digest, area))
    return table_from_rows(rows)


def test_thresholds_are_the_users(tmp_path: Path):
    told = run(tmp_path, shared_cells(), "--agreement", "0.99999")
    assert told["near_duplicates"] == []
    assert told["groups"] == [["a", "b"]]
    assert told["settings"]["agreement"] == 0.99999
    told = run(tmp_path, shared_cells(), "--distance", "0.01")
    assert told["near_duplicates"] == []
    assert told["settings"]["distance"] == 0.01


def test_pairs_come_in_the_order_of_the_images(tmp_path: Path):
    told = run(
        tmp_path,
        {
            "1.png": Row(png(0), "a", fold="0"),
            "2.jpg": Row(turned(0), "a", fold="1"),
            "3.png": Row(png(1), "b", "HEM", fold="0"),
            "4.png": Row(png(1), "b", "HEM", fold="1"),
        },
    )
    assert [pair[:2] for pair in told["cross_fold"]["pairs"]] == [
        ["1.png", "2.jpg"],
        ["3.png", "4.png"],
    ]


def test_splits_read_what_the_audit_writes(tmp_path: Path):
    told = run(tmp_path, shared_cells())
    table = table_of(tmp_path / "cells" / "cells.csv")
    groups = find_groups(table, str(tmp_path / "audit.json"))
    assert dict(zip(table.patient.tolist(), groups.group.tolist(), strict=True)) == {
        **dict.fromkeys("abc", "a+b+c"),
        **dict.fromkeys("de", "d+e"),
        "f": "f",
        "g": "g",
    }
    assert told["data"]["fingerprint"] == table.fingerprint()
    assert told["data"]["images"] == len(table) == 12


def test_twins_with_different_labels_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    told = run(
        tmp_path,
        {
            "a.png": Row(png(0), "a", "ALL"),
            "b.png": Row(png(0), "b", "HEM"),
            "c.png": Row(turned(0), "c", "ALL"),
            "d.png": Row(png(1), "d", "HEM"),
        },
    )
    assert told["label_conflicts"] == [
        ["a.png", "b.png", "ALL", "HEM"],
        ["b.png", "c.png", "HEM", "ALL"],
    ]
    assert told["groups"] == [["a", "b", "c"]]
    assert "a b c share cells and are of both classes" in capsys.readouterr().out


def final(data: bytes) -> Row:
    return Row(data, "final/unknown", "", "final")


def test_nobody_of_the_final_part_joins_others(tmp_path: Path):
    told = run(
        tmp_path,
        {
            "a.png": Row(png(0), "a"),
            "b.png": Row(png(1), "b"),
            "c.png": Row(png(2), "c", "HEM"),
            "d.png": Row(png(2), "d", "HEM"),
            # Whose cells these are is not known: they need not be of one patient.
            "f1.png": final(turned(0)),
            "f2.png": final(turned(1)),
        },
    )
    assert len(told["near_duplicates"]) == 2
    assert told["groups"] == [["c", "d"]]
    assert [pair[2:] for pair in told["cross_fold"]["pairs"]] == [
        ["train", "final"]
    ] * 2
    assert told["label_conflicts"] == []


def test_a_cell_of_the_final_part_joins_those_whose_cell_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # The two ends agree with the middle only.
    real = findings.twins.find_twins
    monkeypatch.setattr(
        findings.twins,
        "find_twins",
        lambda looks, **kwargs: [
            pair for pair in real(looks, **kwargs) if pair.second == 3
        ],
    )
    told = run(
        tmp_path,
        {
            "a.png": Row(png(0), "a"),
            "b.png": Row(turned(0), "b"),
            "c.png": Row(png(2), "c", "HEM"),
            "f.png": final(turned(0, 2)),
        },
    )
    assert [pair[:2] for pair in told["near_duplicates"]] == [
        ["a.png", "f.png"],
        ["b.png", "f.png"],
    ]
    assert told["groups"] == [["a", "b"]]
    weakest = min(e["agreement"] for e in told["near_evidence"])
    assert told["groups_weakest_agreement"] == [weakest]


def test_the_same_patient_in_two_parts_is_named(tmp_path: Path):
    told = run(
        tmp_path,
        {
            "1.png": Row(png(0), "7", "ALL", "train", "1"),
            "2.png": Row(png(1), "7", "ALL", "prelim"),
            "3.png": Row(png(2), "8", "HEM", "prelim"),
        },
    )
    assert told["cross_fold"]["patients"] == [["7", "train fold 1", "prelim"]]
    assert told["groups"] == []


def white(side: int = 450) -> np.ndarray:
    return np.full((side, side, 3), 255, np.uint8)


def test_broken_and_odd_files_are_listed_with_the_reason(tmp_path: Path):
    tiny = np.zeros((450, 450, 3), np.uint8)
    tiny[200:230, 200:230] = planted.cell(0)[210:240, 210:240]
    cut = np.zeros_like(tiny)
    cut[:, :225] = planted.cell(2)[:, 225:]
    bright = planted.cell(3).copy()
    bright[:4, :4] = 90
    on_white = np.where(planted.cell(4) == 0, 255, planted.cell(4)).astype(np.uint8)
    flat = np.where(planted.cell(5) > 0, np.uint8(100), np.uint8(0))
    rows = {f"good{i}.png": Row(png(20 + i), "g") for i in range(24)}
    rows |= {
        "empty.png": Row(b"", "p"),
        "text.png": Row(b"no picture at all", "p"),
        "short.png": Row(png(0)[:4000], "p"),
        "black.png": Row(pictures.encode(np.zeros_like(tiny), "PNG"), "p"),
        "black2.png": Row(pictures.encode(np.zeros_like(tiny), "PNG"), "q"),
        "dim.png": Row(pictures.encode(planted.cell(1) // 12, "PNG"), "p"),
        "flat.png": Row(pictures.encode(flat, "PNG"), "p"),
        "white.png": Row(pictures.encode(on_white, "PNG"), "p", "HEM"),
        "cut.png": Row(pictures.encode(cut, "PNG"), "p"),
        "bright.png": Row(pictures.encode(bright, "PNG"), "p"),
        "tiny.png": Row(pictures.encode(tiny, "PNG"), "p"),
        "size.png": Row(pictures.encode(planted.cell(6)[40:-40], "PNG"), "p"),
    }
    told = run(tmp_path, rows)
    found = {(item["image_id"], item["reason"]) for item in told["broken"]}
    assert found == {
        ("empty.png", "unreadable"),
        ("text.png", "unreadable"),
        ("short.png", "unreadable"),
        ("black.png", "no cell"),
        ("black2.png", "no cell"),
        ("dim.png", "no cell"),
        ("flat.png", "no texture"),
        ("white.png", "background not black"),
        ("white.png", "unusual area"),
        ("cut.png", "cell cut by the picture's edge"),
        ("bright.png", "something bright beside the cell"),
        ("tiny.png", "unusual area"),
        ("size.png", "unusual size"),
    }
    detail = {(i["image_id"], i["reason"]): i["detail"] for i in told["broken"]}
    assert detail["size.png", "unusual size"] == "450 x 370 pixels, most are 450 x 450"
    assert detail["bright.png", "something bright beside the cell"] == "16 pixels"
    assert "the file is empty" in detail["empty.png", "unreadable"]
    assert told["counts"]["unreadable"] == 3
    assert (told["data"]["files"], told["data"]["images"]) == (36, 33)
    # Two black pictures are no reason to join two patients.
    assert told["exact_duplicates"] == []
    assert told["groups"] == []
    assert {item["patient"] for item in told["broken"]} == {"p", "q"}
    assert all(Path(i["file"]).name == i["image_id"] for i in told["broken"])


def test_unusual_sizes_are_told_where_there_is_a_usual_one(tmp_path: Path):
    rows = {
        f"{i}.png": Row(
            pictures.encode(planted.cell(i)[i:], "PNG"), "p", "ALL" if i else "HEM"
        )
        for i in range(6)
    }
    assert run(tmp_path, rows)["broken"] == []


@pytest.mark.parametrize("data", [b"", b"no picture"])
def test_only_broken_files_are_an_audit_too(tmp_path: Path, data: bytes):
    rows = {"1.png": Row(data, "a"), "2.png": Row(data, "b", "HEM")}
    told = run(tmp_path, rows)
    assert [item["reason"] for item in told["broken"]] == ["unreadable"] * 2
    assert told["exact_duplicates"] == told["near_duplicates"] == told["groups"] == []
    with Image.open(tmp_path / "audit.png") as sheet:
        assert sheet.format == "PNG"


def test_one_image_has_no_twin(tmp_path: Path):
    told = run(tmp_path, {"1.png": final(png(0))})
    assert told["counts"]["exact_pairs"] == told["counts"]["near_pairs"] == 0
    assert told["data"]["images"] == 1


def test_final_images_are_cut_to_their_centre_first(tmp_path: Path):
    # As released: 600 pixels wide, where all others have 450.
    wide = np.pad(planted.cell(0), ((75, 75), (75, 75), (0, 0)))
    wide[:60, :60] = 200
    rows = {f"{i}.png": Row(png(i), "a", "HEM" if i else "ALL") for i in range(12)}
    told = run(tmp_path, rows | {"99.png": final(pictures.encode(wide, "PNG"))})
    assert told["broken"] == []  # its size is the usual one of its part
    assert [pair[:2] for pair in told["near_duplicates"]] == [["0.png", "99.png"]]
    assert told["near_duplicates"][0][2] == 0


def test_a_file_that_vanishes_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = Path.read_bytes

    def refusing(path: Path) -> bytes:
        if path.name == "2.png":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refusing)
    told = run(tmp_path, {"1.png": Row(png(0), "a"), "2.png": Row(png(1), "b", "HEM")})
    (item,) = told["broken"]
    assert (item["image_id"], item["reason"]) == ("2.png", "unreadable")
    assert "Permission denied" in item["detail"]


def test_pictures_in_thousands_of_files_do_not_make_millions_of_pairs(tmp_path: Path):
    data, turn = png(0), turned(0)
    rows = {f"{i}.png": Row(data, f"p{i}", "ALL") for i in range(30)}
    rows["turned.jpg"] = Row(turn, "q", "HEM")
    told = run(tmp_path, rows)
    assert told["exact_duplicates"] == [["0.png", f"{i}.png"] for i in range(1, 30)]
    assert [pair[:2] for pair in told["near_duplicates"]] == [["0.png", "turned.jpg"]]
    (group,) = told["groups"]
    assert len(group) == 31


def test_near_pairs_are_told_of_every_identical_copy(tmp_path: Path):
    told = run(
        tmp_path,
        {
            "1.png": Row(png(0), "a"),
            "2.jpg": Row(turned(0), "b"),
            "3.png": Row(png(0), "c"),
            "4.png": Row(png(1), "d", "HEM"),
        },
    )
    assert told["exact_duplicates"] == [["1.png", "3.png"]]
    assert [pair[:2] for pair in told["near_duplicates"]] == [
        ["1.png", "2.jpg"],
        ["2.jpg", "3.png"],
    ]
    # Seen from its other end, a quarter turn is three.
    assert [e["quarter_turns"] for e in told["near_evidence"]] == [1, 3]


Cards = list[audit.contact_sheet.Card]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Cards:
    """What is drawn while the test runs."""
    drawn: Cards = []
    real = audit.contact_sheet.draw

    def draw(title: str, notes: Sequence[str], pairs: Cards) -> bytes:
        drawn.extend(pairs)
        return real(title, notes, pairs)

    monkeypatch.setattr(audit.contact_sheet, "draw", draw)
    return drawn


@pytest.mark.parametrize("view", planted.VIEWS)
def test_the_sheet_shows_a_pair_turned_alike(
    tmp_path: Path, view: tuple[int, bool], cards: Cards
):
    copy = pictures.encode(planted.turn(planted.cell(0), view), "BMP")
    run(
        tmp_path,
        {
            "2.png": Row(copy, "b", "HEM"),
            "3.png": Row(png(0), "c"),
            "10.png": Row(copy, "d"),
        },
    )
    # 2 and 10 are identical, and each of them like 3.
    assert [card.captions for card in cards] == [
        ("2.png", "3.png"),
        ("3.png", "10.png"),
        ("2.png", "10.png"),
    ]
    for card in cards:
        np.testing.assert_array_equal(*card.pictures)
    assert [card.marked for card in cards] == [True, False, True]
    assert cards[0].lines[1] == "patients b and c"
    assert cards[2].lines[0] == "byte-identical"


def test_the_sheet_begins_with_the_least_certain_pairs(tmp_path: Path, cards: Cards):
    rows: dict[str, Row] = {}
    for i, quality in enumerate([95, 30, 60]):
        rows[f"{i}.png"] = Row(png(i), f"p{i}", "HEM" if i else "ALL")
        rows[f"{i}.jpg"] = Row(planted.jpeg(planted.cell(i), quality), f"p{i}")
    rows["3.png"] = rows["4.png"] = Row(png(3), "q")
    source = write(tmp_path / "cells", rows)
    data = audit.draw_sheet(findings.find(readers.open_source(None, source)[1]))
    assert [min(card.captions)[0] for card in cards] == ["1", "2", "0", "3"]
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG"
        assert picture.width > 800
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    # The cells are there: purple, on black, on paper.
    red, green, blue = pixels.T
    purple = (blue > green + 40) & (red > green + 20)
    assert purple.mean() > 0.1
    assert (pixels.sum(axis=1) == 0).mean() > 0.05
    assert (pixels.sum(axis=1) == 765).mean() > 0.05


def inspected(number: int, patient: str, part: Part = Part.TRAIN) -> Inspected:
    source = DiskImage(path=f"{number}.png")
    return Inspected(
        cell=CellFile(
            image_id=str(number), patient=patient, label=1, part=part, source=source
        )
    )


@pytest.mark.parametrize(
    ("agreements", "expected"),
    [
        # Images 0 to 3 are of patients a, b and c, and 4 and 5 of the final part.
        ({(0, 1): 0.9}, [(("a", "b"), 0.9)]),
        ({(0, 1): 0.6, (0, 2): 0.9}, [(("a", "b"), 0.9)]),  # twice the same two
        ({(0, 1): 0.9, (1, 3): 0.7}, [(("a", "b", "c"), 0.7)]),
        ({(0, 1): 0.7, (1, 3): 0.9, (0, 3): 0.8}, [(("a", "b", "c"), 0.8)]),
        ({(0, 4): 0.9}, []),
        ({(0, 4): 0.9, (3, 5): 0.8}, []),
        ({(0, 4): 0.9, (3, 4): 0.8}, [(("a", "c"), 0.8)]),
        ({(0, 4): 0.8, (3, 4): 0.9}, [(("a", "c"), 0.8)]),
        # That the group has further images adds no link between patients.
        ({(0, 1): 0.9, (0, 4): 0.6}, [(("a", "b"), 0.9)]),
        ({(0, 1): 0.9, (4, 5): 0.8, (0, 5): 0.6}, [(("a", "b"), 0.9)]),
        ({(0, 1): 0.9, (0, 5): 0.8, (4, 5): 0.6}, [(("a", "b"), 0.9)]),
    ],
)
def test_a_group_hangs_by_the_weakest_link_it_needs(
    agreements: dict[tuple[int, int], float],
    expected: list[tuple[tuple[str, ...], float]],
):
    files = [inspected(i, name) for i, name in enumerate("abbc")]
    files += [inspected(i, FINAL_PATIENT, Part.FINAL) for i in (4, 5)]
    pairs = [findings.Pair(*ends, 1, value) for ends, value in agreements.items()]
    groups = findings._groups(files, pairs)
    assert [(group.patients, group.weakest) for group in groups] == expected


def test_what_is_written_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = {"1.png": Row(png(0), "a"), "2.png": Row(png(1), "b", "HEM")}
    source = write(tmp_path / "cells", rows)
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "audit.json"
    out.write_text("as it was")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupted)
        assert audit.main([str(source), "--out", str(out)]) == 130
    assert out.read_text() == "as it was"
    assert [file.name for file in folder.iterdir()] == ["audit.json"]
    real, names = Path.replace, []

    def watched(path: Path, target: Path) -> Path:
        names.append(path.name)
        return real(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    assert audit.main([str(source), "--out", str(out)]) == 0
    # Neither is written in its place.
    assert len(names) == 2
    assert not {"audit.json", "audit.png"} & set(names)
    assert sorted(file.name for file in folder.iterdir()) == ["audit.json", "audit.png"]
    assert json.loads(out.read_text())["data"]["images"] == 2


def test_a_full_disk_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write(tmp_path / "cells", {"1.png": final(png(0))})
    with room_for(400):
        assert audit.main([str(source), "--out", str(tmp_path / "a.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "a.json: cannot be written (File too large)" in error
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["absent", "--out", "a.json"], "absent: does not exist"),
        (["empty", "--out", "a.json"], "no images"),
        (["cells", "--out", "a.png"], "--out = a.png: must end in .json"),
        (["cells", "--out", "b.json"], "--out = b.json: is a folder"),
        (["cells", "--out", "no/a.json"], "its folder does not exist"),
        (["cells", "--out", "a.json", "--sheet", "a.jpg"], "must end in .png"),
        (["cells", "--out", "a.json", "--distance", "0"], "--distance = 0.0: must be"),
        (["cells", "--out", "a.json", "--agreement", "1.5"], "--agreement = 1.5"),
        (["cells", "--out", "a.json", "--agreement", "nan"], "--agreement = nan"),
        (["cells", "--out", "a.json", "--source-kind", "cnmc"], "C-NMC 2019"),
    ],
)
def test_a_users_mistake_is_told_in_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    told: str,
):
    monkeypatch.chdir(tmp_path)
    layouts.write(tmp_path / "cells", layouts.class_tree())
    (tmp_path / "empty").mkdir()
    (tmp_path / "b.json").mkdir()
    assert audit.main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error
    assert not (tmp_path / "a.json").exists()
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("layout", ["folder", "zip"])
def test_class_folders_and_zips_are_audited(tmp_path: Path, layout: str):
    files = {
        "ALL/p1/1.png": png(0),
        "ALL/p2/1.bmp": pictures.encode(planted.cell(0), "BMP"),
        "HEM/q/1.png": png(1),
    }
    source = layouts.write(tmp_path / "data", files)
    if layout == "zip":
        source = layouts.pack(tmp_path / "data.zip", files)
    out, sheet = tmp_path / "a.json", tmp_path / "pairs.png"
    assert audit.main([str(source), "--out", str(out), "--sheet", str(sheet)]) == 0
    told = json.loads(out.read_text())
    assert told["near_duplicates"] == [["ALL/p1/1.png", "ALL/p2/1.bmp", 0.0]]
    assert told["groups"] == [["p1", "p2"]]
    assert told["source"] == "folder"
    assert told["contact_sheet"] == "pairs.png"
    assert sheet.is_file()


def test_a_pair_stands_on_one_line(tmp_path: Path):
    run(tmp_path, shared_cells())
    lines = (tmp_path / "audit.json").read_text().splitlines()
    assert '    ["a1.png", "b1.png"],' in lines
    assert len(lines) < 120


def box_thumbnail(data: bytes) -> np.ndarray:
    """The measure of the counts below: the upright box of what is brighter than 24."""
    image = transforms.decode(data, name="a file")
    level = image.max(axis=-1) > 24
    rows, columns = (np.flatnonzero(level.any(axis=axis)) for axis in (1, 0))
    box = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    small = Image.fromarray(box).resize((32, 32), Image.Resampling.BOX)
    return np.asarray(small).astype(np.float32)


def test_the_twins_of_cnmc_are_found(cnmc_dir: Path, tmp_path: Path):
    out = tmp_path / "audit.json"
    assert audit.main([str(cnmc_dir), "--out", str(out)]) == 0
    told = json.loads(out.read_text())
    _, cells = readers.open_source(None, cnmc_dir)
    by_id = {cell.image_id: cell for cell in cells if cell.part == "train"}
    assert len(by_id) == 10_661, "the whole training part"

    def across(pairs: Sequence[Sequence[str]]) -> int:
        return sum(by_id[a].fold != by_id[b].fold for a, b, *_ in pairs)

    def of_training(key: str) -> list[list[str]]:
        return [pair[:2] for pair in told[key] if {*pair[:2]} <= by_id.keys()]

    exact, near = of_training("exact_duplicates"), of_training("near_duplicates")
    if by_id["UID_11_10_1_all"].source.name.endswith(".jpg"):
        # Counted beforehand with a measure of its own, by brute force.
        assert (len(exact), across(exact)) == (104, 94)
        named = sorted({name for pair in exact + near for name in pair})
        small = {name: box_thumbnail(by_id[name].source.read()) for name in named}
        close = [
            (a, b)
            for a, b in exact + near
            if np.sqrt(np.mean((small[a] - small[b]) ** 2)) <= 3
        ]
        assert (len(close), across(close)) == (588, 356)
    assert told["label_conflicts"] == []
    assert told["cross_fold"]["patients"] == []
    # All joined groups are of one class, and none swallows the others.
    groups = told["groups"]
    if len(cells) == len(by_id):
        assert 73 - sum(map(len, groups)) + len(groups) == 54
    of_patient = {name: i for i, group in enumerate(groups) for name in group}
    sizes = np.bincount(
        [of_patient[c.patient] for c in by_id.values() if c.patient in of_patient]
    )
    assert sizes.max() < 1_200
    assert min(told["groups_weakest_agreement"]) > 0.7
    # What the file says twice agrees with itself.
    patient = {name: cell.patient for name, cell in by_id.items()}
    for a, b in itertools.chain(exact, near):
        assert of_patient.get(patient[a], patient[a]) == of_patient.get(
            patient[b], patient[b]
        )
    one, other = exact[0]
    assert one != other
    digests = {hashlib.sha256(by_id[name].source.read()).digest() for name in exact[0]}
    assert len(digests) == 1
