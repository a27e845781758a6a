import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from allcls_jax.config import DataSource
from allcls_jax.data import cnmc, readers
from allcls_jax.data.cells import ALL, HEM, UNLABELLED, CellFile, Part
from allcls_jax.data.cnmc import read_cnmc
from allcls_jax.data.files import ZipImage
from allcls_jax.errors import InputError
from tests.data import layouts
from tests.data.layouts import Files


def _records(cells: list[CellFile]) -> list[tuple[str, str, int, str, int]]:
    return [(c.image_id, c.patient, c.label, str(c.part), c.fold) for c in cells]


def _problems(path: Path) -> list[str]:
    """The lines of the error that a path gives."""
    with pytest.raises(InputError) as caught:
        read_cnmc(path)
    lines = str(caught.value).splitlines()
    listed = [line[4:] for line in lines[1:-1]]
    assert all(line.startswith("  - ") for line in lines[1:-1])
    noun = "problem" if len(listed) == 1 else "problems"
    assert lines[0].endswith(f"{len(listed)} {noun}")
    assert "C-NMC_test_prelim_phase_data" in lines[-1]
    return listed


@pytest.fixture(params=layouts.CNMC_LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Files:
    return layouts.CNMC_LAYOUTS[request.param]()


def test_each_layout_gives_the_same_cells(tmp_path: Path, layout: Files):
    root = layouts.write(tmp_path / "data", layout | layouts.junk())
    source, cells = readers.open_source(None, root)
    assert source is DataSource.CNMC
    assert _records(cells) == layouts.RECORDS
    assert {cell.max_side for cell in cells} == {450}
    stem = {"prelim": "phase2", "final": "phase3"}
    for cell in cells:
        name = cell.image_id.rpartition("/")[2]
        assert Path(cell.source.name).stem == name
        if cell.part in stem:
            assert cell.source.read() == layouts.picture(name)


def test_each_layout_is_read_from_one_zip(tmp_path: Path, layout: Files):
    path = layouts.pack(tmp_path / "data.zip", layout | layouts.junk())
    source, cells = readers.open_source(None, path)
    assert source is DataSource.CNMC
    assert _records(cells) == layouts.RECORDS
    assert all(isinstance(cell.source, ZipImage) for cell in cells)
    assert cells[0].source.read().startswith(b"BM")


def test_each_layout_is_read_from_a_zip_lying_in_the_folder(
    tmp_path: Path, layout: Files
):
    layouts.pack(tmp_path / "data" / "download.zip", layout)
    assert _records(read_cnmc(tmp_path / "data")) == layouts.RECORDS


def test_images_are_listed_unread(tmp_path: Path):
    content = {
        path: data if path.endswith(".csv") else b""
        for path, data in layouts.kaggle().items()
    }
    assert _records(read_cnmc(layouts.write(tmp_path, content))) == layouts.RECORDS


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".PNG", ".tif", ".BMP"])
def test_other_formats_are_matched_to_the_csv_by_number(tmp_path: Path, suffix: str):
    content = {
        path.replace(".bmp", suffix): data for path, data in layouts.tcia().items()
    }
    assert _records(read_cnmc(layouts.write(tmp_path, content))) == layouts.RECORDS


def test_zips_of_the_parts_lying_side_by_side(tmp_path: Path):
    folds = layouts.training()
    for fold in ("fold_0", "fold_1"):  # one with the folder inside, one without
        inside = {p: d for p, d in folds.items() if p.startswith(fold)}
        if fold == "fold_1":
            inside = {p.removeprefix("fold_1/"): d for p, d in inside.items()}
        layouts.pack(tmp_path / f"{fold}.zip", inside)
    layouts.write(tmp_path, {p: d for p, d in folds.items() if p.startswith("fold_2")})
    part = "C-NMC_test_prelim_phase_data"
    layouts.pack(
        tmp_path / f"{part}.zip", layouts.below(part, layouts.numbered(1, 2, 10))
    )
    layouts.write(tmp_path, {layouts.PRELIM_TABLE: layouts.prelim_table()})
    layouts.pack(tmp_path / "phase3.zip", layouts.numbered(1, 2))
    assert _records(read_cnmc(tmp_path)) == layouts.RECORDS


def test_zip_left_beside_its_unpacked_folder_changes_nothing(tmp_path: Path):
    layouts.write(tmp_path, layouts.challenge())
    for fold in ("fold_0", "fold_1"):
        inside = layouts.training()
        layouts.pack(
            tmp_path / f"{fold}.zip",
            {p: d for p, d in inside.items() if p.startswith(fold)},
        )
    cells = read_cnmc(tmp_path)
    assert _records(cells) == layouts.RECORDS
    assert not any(isinstance(cell.source, ZipImage) for cell in cells)


def test_zip_that_was_unpacked_halfway_is_told(tmp_path: Path):
    layouts.write(tmp_path, layouts.challenge())
    more = {"fold_0/all/UID_11_3_1_all.bmp": b"", "fold_0/all/UID_11_1_1_all.bmp": b""}
    layouts.pack(tmp_path / "fold_0.zip", more)
    (problem,) = _problems(tmp_path)
    assert problem.startswith("UID_11_1_1_all lies in ")


@pytest.mark.parametrize(
    ("inner", "folds"),
    [
        ("C-NMC_Leukemia", {0, 1, 2, -1}),
        ("C-NMC_Leukemia/training_data", {0, 1, 2}),
        ("C-NMC_Leukemia/training_data/fold_1", {1}),
        ("C-NMC_Leukemia/training_data/fold_1/hem", {1}),
        ("C-NMC_Leukemia/validation_data", {-1}),
        ("C-NMC_Leukemia/validation_data/C-NMC_test_prelim_phase_data", {-1}),
        ("C-NMC_Leukemia/testing_data", {-1}),
        ("C-NMC_Leukemia/testing_data/C-NMC_test_final_phase_data", {-1}),
    ],
)
def test_inner_folder_gives_its_share(tmp_path: Path, inner: str, folds: set[int]):
    root = layouts.write(tmp_path, layouts.kaggle()) / inner
    source, cells = readers.open_source(None, root)
    assert source is DataSource.CNMC
    assert {cell.fold for cell in cells} == folds
    inside = {Path(p).stem for p in layouts.kaggle() if p.startswith(f"{inner}/")}
    ids = {cell.image_id.rpartition("/")[2] for cell in cells}
    assert ids == inside - {Path(layouts.PRELIM_TABLE).stem}
    assert set(_records(cells)) <= set(layouts.RECORDS)


def test_part_given_as_zip_finds_the_csv_beside_it(tmp_path: Path):
    path = tmp_path / "C-NMC_test_prelim_phase_data.zip"
    layouts.pack(path, layouts.numbered(1, 2, 10))
    layouts.write(tmp_path, {layouts.PRELIM_TABLE: layouts.prelim_table()})
    assert _records(read_cnmc(path)) == layouts.PRELIM_RECORDS


def test_same_csv_twice_is_one(tmp_path: Path):
    layouts.write(tmp_path, layouts.kaggle())
    layouts.write(tmp_path, {layouts.PRELIM_TABLE: layouts.prelim_table()})
    assert _records(read_cnmc(tmp_path)) == layouts.RECORDS


def test_two_csvs_that_differ_are_told(tmp_path: Path):
    layouts.write(tmp_path, layouts.kaggle())
    layouts.write(tmp_path, {layouts.PRELIM_TABLE: layouts.prelim_table()[:-20]})
    (problem,) = _problems(tmp_path)
    assert "differ; keep one" in problem


def test_csv_may_begin_with_a_byte_order_mark(tmp_path: Path):
    table = b"\xef\xbb\xbf" + layouts.prelim_table().replace(b"\n", b"\r\n")
    layouts.write(tmp_path, layouts.challenge() | {"phase2.csv": table})
    assert _records(read_cnmc(tmp_path)) == layouts.RECORDS


@pytest.mark.parametrize("name", ["isbi_test_guess.csv", "phase3.csv", "labels.csv"])
@pytest.mark.parametrize("folder", [".", "phase3"])
def test_labels_of_the_final_part_are_never_read(
    tmp_path: Path, name: str, folder: str
):
    guess = layouts.prelim_table((("UID_60_1_1_all.bmp", "1.bmp", "1"),))
    layouts.write(tmp_path, layouts.challenge() | {f"{folder}/{name}": guess})
    cells = read_cnmc(tmp_path)
    assert _records(cells) == layouts.RECORDS
    final = [cell.label for cell in cells if cell.part is Part.FINAL]
    assert final == [UNLABELLED, UNLABELLED]


def test_csv_of_the_preliminary_part_is_not_used_for_the_final_one(tmp_path: Path):
    final = layouts.below("phase3", layouts.numbered(1, 2, 10))
    layouts.write(tmp_path, final | {"phase3/phase2.csv": layouts.prelim_table()})
    (problem,) = _problems(tmp_path)
    assert "no preliminary images for it" in problem


def test_preliminary_images_without_csv_are_refused_with_the_remedy(tmp_path: Path):
    content = layouts.challenge()
    del content["phase2.csv"]
    (problem,) = _problems(layouts.write(tmp_path, content))
    assert "3 preliminary images" in problem
    assert "put it beside or into their folder" in problem


def test_rows_that_disagree_with_the_files_are_all_listed(tmp_path: Path):
    rows = (
        ("UID_57_29_1_all.bmp", "1.bmp", "0"),  # contradicts the name
        ("UID_H57_2_1_hem.bmp", "2.bmp", "0"),
        ("UID_H57_2_1_hem.bmp", "2.bmp", "0"),  # twice
        ("UID_57_30_1_all.bmp", "3.bmp", "1"),  # no image; and none for 10
        ("57", "4.bmp", "1"),  # no name, and no image
        ("UID_57_31_1_all.bmp", "5.bmp", "2"),
        ("UID_57_32_1_all.bmp", "6.bmp", ""),
    )
    content = layouts.challenge() | {"phase2.csv": layouts.prelim_table(rows)}
    content |= layouts.below("phase2", layouts.numbered(5, 6))
    problems = _problems(layouts.write(tmp_path, content))
    table = str(tmp_path / "phase2.csv")
    assert all(problem.startswith(f"{table}: ") for problem in problems)
    short = sorted(p.removeprefix(f"{table}: ")[:28] for p in problems)
    assert short == sorted(
        text[:28]
        for text in (
            "line 2: 1.bmp has the Patient_ID 'UID_57_29_1_all.bmp' and the label '0'",
            "line 4: a second row for 2.bmp",
            "line 6: 4.bmp has the Patient_ID '57'",
            "line 7: 5.bmp has the Patient_ID",
            "line 8: 6.bmp has the Patient_ID",
            "no image for the row of 3",
            "no image for the row of 4",
            f"no row for {tmp_path}/phase2/10.bmp",
        )
    )


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (b"", "has the columns (none)"),
        (b"id;file;label\n1;2;3\n", "has the columns id;file;label"),
        (b"Patient_ID,new_names,labels\n\xff\xfe\n", "cannot be read"),
        (b'Patient_ID,new_names,labels\n"' + b"x" * 200_000, "field larger"),
    ],
)
def test_csv_that_is_none_is_told(tmp_path: Path, table: bytes, reason: str):
    layouts.write(tmp_path, layouts.challenge() | {"phase2.csv": table})
    (problem,) = _problems(tmp_path)
    assert reason in problem


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("fold_0/hem/UID_12_1_1_all.bmp", "the name says all, the folder"),
        ("fold_0/UID_12_1_1_all.bmp", "must lie in a folder called all or hem"),
        ("fold_0/all/UID_12_1_1_ALL (1).bmp", "the name is neither"),
        ("fold_0/all/UID_12_1_all.bmp", "the name is neither"),
        ("fold_0/all/1.bmp", "of neither test part"),
        ("phase2/UID_12_1_1_all.bmp", "in the folder of a test part"),
        ("other/12.bmp", "of neither test part"),
        ("fold_1/all/UID_11_1_1_all.bmp", "UID_11_1_1_all lies in"),
        ("fold_0/all/UID_11_1_1_all.jpg", "UID_11_1_1_all lies in"),
        ("fold_1/hem/UID_H3_1_1_hem.bmp", "lies in"),
        ("phase2/sub/1.bmp", "prelim/1 lies in"),
        ("merged/all/UID_12_1_1_all.bmp", "1 training images"),
        ("fold_3/all/UID_12_1_1_all.bmp", "1 training images"),
        ("fold_0/all/UID_12_1_1_all.webp", ".webp is not read"),
        ("fold_0.zip", "cannot be read as a zip"),
    ],
)
def test_file_out_of_place_is_told(tmp_path: Path, path: str, reason: str):
    layouts.write(tmp_path, layouts.challenge() | {path: b"x"})
    (problem,) = _problems(tmp_path)
    assert reason in problem
    assert Path(path).stem.lower() in problem.lower()


def test_fold_that_lacks_a_class_is_told(tmp_path: Path):
    content = {p: d for p, d in layouts.training().items() if "fold_1/hem" not in p}
    problems = _problems(layouts.write(tmp_path, content))
    assert problems == ["fold_1 has no image in a folder called hem"]


def test_everything_wrong_is_listed_at_once(tmp_path: Path):
    content = layouts.challenge() | {
        "fold_0/hem/UID_12_1_1_all.bmp": b"",
        "strange.png": b"",
        "fold_2.zip": b"no zip",
    }
    del content["phase2.csv"]
    assert len(_problems(layouts.write(tmp_path, content))) == 4


@pytest.mark.parametrize("make", [dict, layouts.junk])
def test_folder_without_images_is_refused(tmp_path: Path, make: Callable[[], Files]):
    layouts.write(tmp_path, make())
    assert _problems(tmp_path) == ["no images"]


def test_merged_folds_have_no_fold(tmp_path: Path):
    content = {p.partition("/")[2]: d for p, d in layouts.training().items()}
    cells = read_cnmc(layouts.write(tmp_path, content))
    expected = [(*record[:4], -1) for record in layouts.TRAIN_RECORDS]
    assert _records(cells) == expected


def test_ten_thousand_images_are_listed_quickly(tmp_path: Path):
    content = {
        f"fold_{i % 3}/{kind}/UID_{'H' * (kind == 'hem')}{i % 73}_{i}_1_{kind}.bmp": b""
        for i in range(5000)
        for kind in ("all", "hem")
    }
    path = layouts.pack(tmp_path / "a.zip", content)
    start = time.perf_counter()
    cells = read_cnmc(path)
    assert time.perf_counter() - start < 5  # measured: 0.4 s
    assert len(cells) == 10_000


def test_real_training_part_has_its_published_composition(cnmc_dir: Path):
    start = time.perf_counter()
    source, cells = readers.open_source(None, cnmc_dir)
    assert time.perf_counter() - start < 5  # measured: 0.25 s
    assert source is DataSource.CNMC
    train = [cell for cell in cells if cell.part is Part.TRAIN]
    assert Counter(cell.label for cell in train) == {ALL: 7272, HEM: 3389}
    subjects = {(cell.fold, cell.label, cell.patient) for cell in train}
    patients = Counter((fold, label) for fold, label, _ in subjects)
    assert patients == {
        (0, ALL): 19, (0, HEM): 9,
        (1, ALL): 11, (1, HEM): 3,
        (2, ALL): 17, (2, HEM): 14,
    }  # fmt: skip
    images = Counter((cell.fold, cell.label) for cell in train)
    assert images == {
        (0, ALL): 2397, (0, HEM): 1130,
        (1, ALL): 2418, (1, HEM): 1163,
        (2, ALL): 2457, (2, HEM): 1096,
    }  # fmt: skip
    assert len({cell.patient for cell in train}) == 73
    by_patient = Counter(cell.patient for cell in train)
    assert by_patient["51"] == 757
    assert by_patient["H3"] == 36
    assert sum(re.match("UID_h3_", cell.image_id) is not None for cell in train) == 36


@pytest.mark.parametrize(
    ("stem", "patient"),
    [
        ("UID_11_10_1_all", "11"),
        ("UID_H22_31_2_hem", "H22"),
        ("UID_h3_1_1_hem", "H3"),
        ("1", None),
        ("UID_11_10_all", None),
    ],
)
def test_patient_is_told_by_a_training_name_alone(stem: str, patient: str | None):
    assert cnmc.patient_of(stem) == patient
