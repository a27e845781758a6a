import os
from pathlib import Path

import pytest

from allcls_jax.config import DataSource
from allcls_jax.data import readers
from allcls_jax.data.cells import ALL, HEM, UNLABELLED, CellFile
from allcls_jax.errors import InputError
from tests.data import layouts

TABLE = """\
path,label,patient
images/2.png,ALL,p1
images/10.png,hem,p2
"""


def _records(cells: list[CellFile]) -> list[tuple[str, str, int, str, int]]:
    return [(c.image_id, c.patient, c.label, str(c.part), c.fold) for c in cells]


def _problems(path: Path) -> list[str]:
    """The lines of the error that a path gives."""
    with pytest.raises(InputError) as caught:
        readers.read_folder(path)
    lines = str(caught.value).splitlines()
    assert "path, label and patient" in lines[-1]  # the remedy
    listed = [line[4:] for line in lines[1:-1]]
    assert all(line.startswith("  - ") for line in lines[1:-1])
    return listed


def _with_table(root: Path, table: str = TABLE, *, name: str = "cells.csv") -> Path:
    content = {f"images/{i}.png": layouts.picture(str(i)) for i in (2, 10)}
    return layouts.write(root, content | {name: table.encode()}) / name


@pytest.mark.parametrize("source", [None, DataSource.FOLDER])
def test_class_tree_gives_class_patient_and_id(
    tmp_path: Path, source: DataSource | None
):
    layouts.write(tmp_path, layouts.class_tree() | layouts.junk())
    told, cells = readers.open_source(source, tmp_path)
    assert told is DataSource.FOLDER
    assert _records(cells) == layouts.CLASS_TREE_RECORDS
    assert {cell.max_side for cell in cells} == {None}
    for cell in cells:
        assert cell.source.read() == layouts.picture(cell.image_id)


@pytest.mark.parametrize("name", ["training_data", "validation_data", "testing_data"])
def test_class_tree_in_a_folder_named_as_in_cnmc_stays_a_class_tree(
    tmp_path: Path, name: str
):
    content = layouts.below(name, {"ALL/p/1.png": b"", "HEM/q/2.png": b""})
    told, cells = readers.open_source(None, layouts.write(tmp_path, content))
    assert told is DataSource.FOLDER
    assert [cell.image_id for cell in cells] == ["ALL/p/1.png", "HEM/q/2.png"]


@pytest.mark.parametrize("wrapping", [".", "cells", "a/b"])
def test_ids_are_the_same_from_above_and_in_a_zip(tmp_path: Path, wrapping: str):
    content = layouts.below(wrapping, layouts.class_tree())
    folder = readers.read_folder(layouts.write(tmp_path / "data", content))
    if wrapping == ".":
        content = layouts.class_tree()
    packed = readers.read_folder(layouts.pack(tmp_path / "data.zip", content))
    assert _records(folder) == _records(packed) == layouts.CLASS_TREE_RECORDS
    assert packed[0].source.read() == folder[0].source.read()


def test_zip_of_each_class_lying_in_the_folder(tmp_path: Path):
    for name in ("ALL", "normal"):
        inside = {
            path.partition("/")[2]: data
            for path, data in layouts.class_tree().items()
            if path.startswith(name)
        }
        layouts.pack(tmp_path / f"{name}.zip", inside)
    assert _records(readers.read_folder(tmp_path)) == layouts.CLASS_TREE_RECORDS


@pytest.mark.parametrize("name", [*readers.ALL_NAMES, "Leukemia", "BLAST"])
def test_each_name_of_all(tmp_path: Path, name: str):
    layouts.write(tmp_path, {f"{name}/p/x.png": b"", "Hem/q/y.png": b""})
    by_patient = {c.patient: c.label for c in readers.read_folder(tmp_path)}
    assert by_patient == {"p": ALL, "q": HEM}


@pytest.mark.parametrize("name", [*readers.HEM_NAMES, "Normal"])
def test_each_name_of_hem(tmp_path: Path, name: str):
    layouts.write(tmp_path, {f"{name}/p/x.png": b"", "All/q/y.png": b""})
    by_patient = {c.patient: c.label for c in readers.read_folder(tmp_path)}
    assert by_patient == {"p": HEM, "q": ALL}


def test_patients_may_be_called_by_any_number(tmp_path: Path):
    layouts.write(tmp_path, {"all/0/x.png": b"", "hem/1/x.png": b""})
    by_patient = {c.patient: c.label for c in readers.read_folder(tmp_path)}
    assert by_patient == {"0": ALL, "1": HEM}


def test_folders_above_the_classes_stay_in_the_id_where_they_differ(tmp_path: Path):
    paths = ["d/a/all/p/x.png", "d/b/all/p/x.png", "d/b/hem/q/x.png"]
    layouts.write(tmp_path, dict.fromkeys(paths, b""))
    ids = [cell.image_id for cell in readers.read_folder(tmp_path)]
    assert ids == ["a/all/p/x.png", "b/all/p/x.png", "b/hem/q/x.png"]


def test_images_without_patient_folder_are_refused_with_the_remedy(tmp_path: Path):
    layouts.write(tmp_path, {"all/x.png": b"", "hem/y.png": b"", "hem/p/z.png": b""})
    problems = _problems(tmp_path)
    assert [p.partition(":")[0] for p in problems[:2]] == ["all/x.png", "hem/y.png"]
    assert all("csv with a patient column" in problem for problem in problems[:2])
    assert problems[2:] == ["no image of class ALL"]


def test_everything_wrong_with_a_tree_is_listed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    content = layouts.class_tree() | {
        "stray.png": b"",
        "unknown/p/x.png": b"",
        "0/ALL/p/x.png": b"",
        "ALL/p1/2.PNG": b"",
        "ALL/p1/x.gif": b"",
        "ALL/locked/x.png": b"",
        "broken.zip": b"",
        "C-NMC_test_final_phase_data/all/p/1.bmp": b"",
        "notes.csv": b"a,b\n1,2\n",
    }
    layouts.write(tmp_path, content)
    real = os.scandir

    def refusing(path: str):
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    problems = sorted(_problems(tmp_path))
    expected = sorted(
        [
            f"{tmp_path}/ALL/locked: cannot be listed",
            f"{tmp_path}/ALL/p1/x.gif: .gif is not read",
            f"{tmp_path}/broken.zip: cannot be read as a zip",
            "0/ALL/p/x.png: a class folder where the patient's belongs",
            "ALL/p1/2.png lies in",
            "C-NMC_test_final_phase_data/all/p/1.bmp: the labels",
            "notes.csv: lacks the columns path, label, patient",
            "stray.png: in no class folder",
            "unknown/p/x.png: in no class folder",
        ]
    )
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(start)


def test_class_without_images_is_told(tmp_path: Path):
    layouts.write(tmp_path, {"all/p/x.png": b""})
    (tmp_path / "hem").mkdir()
    assert _problems(tmp_path) == ["no image of class HEM"]


def test_empty_folder_is_told(tmp_path: Path):
    assert _problems(tmp_path) == ["no images"]


def test_table_gives_class_patient_part_and_fold(tmp_path: Path):
    table = (
        "\ufeffPatient, Label ,path,part,fold,remark\r\n"
        "p1,1,images\\2.png,,2,x\r\n"
        'p1,BLAST,"images/a, b.png",train,,\r\n'
        "\r\n"
        "p2, normal ,./images/10.png,PRELIM,,y\r\n"
        "p3,,images/f.png,final,,y\r\n"
    )
    path = _with_table(tmp_path, table)
    layouts.write(tmp_path, {"images/a, b.png": b"", "images/f.png": b""})
    told, cells = readers.open_source(None, path)
    assert told is DataSource.FOLDER
    assert _records(cells) == [
        ("images/2.png", "p1", ALL, "train", 2),
        ("images/a, b.png", "p1", ALL, "train", -1),
        ("images/10.png", "p2", HEM, "prelim", -1),
        ("images/f.png", "p3", UNLABELLED, "final", -1),
    ]
    assert cells[0].source.read() == layouts.picture("2")


@pytest.mark.parametrize("kind", ["csv", "folder", "zip", "wrapped zip"])
def test_table_is_found_wherever_it_lies(tmp_path: Path, kind: str):
    path = _with_table(tmp_path / "data")
    # An image that the table leaves out, and a table of something else.
    layouts.write(tmp_path / "data", {"images/3.png": b"", "notes.csv": b"a,b\n1,2\n"})
    if kind == "folder":
        path = path.parent
    if kind.endswith("zip"):
        content = {
            str(file.relative_to(path.parent)): file.read_bytes()
            for file in path.parent.rglob("*")
            if file.is_file()
        }
        if kind == "wrapped zip":
            content = layouts.below("data", content)
        path = layouts.pack(tmp_path / "data.zip", content)
    told, cells = readers.open_source(None, path)
    assert told is DataSource.FOLDER
    assert _records(cells) == [
        ("images/2.png", "p1", ALL, "train", -1),
        ("images/10.png", "p2", HEM, "train", -1),
    ]
    assert cells[1].source.read() == layouts.picture("10")


def test_table_may_name_files_above_it(tmp_path: Path):
    table = TABLE.replace("images/", "../images/")
    _with_table(tmp_path)
    path = layouts.write(tmp_path / "tables", {"a.csv": table.encode()}) / "a.csv"
    assert [c.image_id for c in readers.read_folder(path)] == [
        "../images/2.png",
        "../images/10.png",
    ]


def test_two_tables_are_not_chosen_between(tmp_path: Path):
    path = _with_table(tmp_path)
    _with_table(tmp_path, name="other.csv")
    with pytest.raises(InputError, match=r"cells\.csv, other\.csv .*give the path"):
        readers.read_folder(tmp_path)
    assert len(readers.read_folder(path)) == 2


def test_everything_wrong_with_a_table_is_listed_at_once(tmp_path: Path):
    path = _with_table(
        tmp_path,
        "path,label,patient,part,fold\n"
        "images/2.png,ALL,p1,,\n"
        "images/3.png,ALL,p1,,\n"  # line 3: absent
        "images/../images/2.png,ALL,p1,,\n"  # twice
        "images/10.png,sick,p1,,\n"
        "images/11.png,HEM,,,\n"
        "images/12.png,HEM,p1,test,\n"
        "images/13.png,HEM,p1,,3\n"
        "/images/14.png,HEM,p1,,\n"
        "C:\\images\\15.png,HEM,p1,,\n"
        "images/16.png,HEM\n"
        "images/17.png,,p1,,\n"  # line 12: no label
        "images/2.txt,HEM,p1,,\n"
        "images/18.png,HEM,p1,final,\n",
    )
    layouts.write(tmp_path, {"images/2.txt": b"there, but no picture"})
    problems = _problems(path)
    rules = {
        3: "no such image",
        4: "a second row for images/2.png",
        5: "label 'sick' must be one of all,",
        6: "the patient is empty",
        7: "part 'test' must be train, prelim, final or empty",
        8: "fold '3' must be 0, 1, 2 or empty",
        9: "must be relative to the csv",
        10: "must be relative to the csv",
        11: "2 cells under 5 headings",
        12: "label '' must be one of",
        13: "no such image",
        14: "label 'hem', but the labels of C-NMC's final part were never published",
    }
    assert problems[-1] == "no image of class HEM"
    assert len(problems) == len(rules) + 1
    for problem, (line, rule) in zip(problems, rules.items(), strict=False):
        assert problem.startswith(f"line {line}: ")
        assert rule in problem


@pytest.mark.parametrize("part", ["train", "final"])
def test_guessed_labels_of_the_final_part_are_refused(tmp_path: Path, part: str):
    folder = layouts.write(
        tmp_path / "C-NMC_test_final_phase_data", layouts.numbered(1, 2)
    )
    table = f"path,label,patient,part\n1.bmp,ALL,p,{part}\n2.bmp,HEM,q,{part}\n"
    layouts.write(folder, {"isbi_test_guess.csv": table.encode()})
    for path in (folder / "isbi_test_guess.csv", folder):
        problems = _problems(path)
        refused = [p for p in problems if "never published" in p]
        assert len(refused) == 2


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("", "lacks the columns path, label, patient"),
        ("path;label;patient\na.png;ALL;p\n", "lacks the columns path, label, patient"),
        ("path,label\na.png,ALL\n", "lacks the columns patient"),
        ("path,label,patient\n", "no images"),
    ],
)
def test_table_that_is_none_is_told(tmp_path: Path, table: str, reason: str):
    assert _problems(_with_table(tmp_path, table)) == [reason]


def test_table_that_is_no_text_is_told(tmp_path: Path):
    path = layouts.write(tmp_path, {"a.csv": "größe".encode("latin-1")}) / "a.csv"
    (problem,) = _problems(path)
    assert problem.startswith("cannot be read")
    assert "a.csv: cannot be read" in _problems(tmp_path)[-1]


@pytest.mark.parametrize("name", ["absent", "absent.csv", "absent.zip"])
@pytest.mark.parametrize("source", [None, DataSource.FOLDER, DataSource.CNMC])
def test_absent_path_is_told(tmp_path: Path, name: str, source: DataSource | None):
    with pytest.raises(InputError, match=name):
        readers.open_source(source, tmp_path / name)


def test_source_that_does_not_fit_is_told(tmp_path: Path):
    layouts.write(tmp_path, layouts.class_tree())
    with pytest.raises(InputError, match=r"C-NMC 2019: \d+ problems"):
        readers.open_source(DataSource.CNMC, tmp_path)
    with pytest.raises(InputError, match="not from a csv"):
        readers.open_source(DataSource.CNMC, _with_table(tmp_path))


def test_folder_reader_can_be_asked_for_where_cnmc_is_found(tmp_path: Path):
    layouts.write(tmp_path, layouts.challenge())
    with pytest.raises(InputError, match="no patient folder"):
        readers.open_source(DataSource.FOLDER, tmp_path)
