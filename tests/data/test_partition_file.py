"""partition.csv: comes back as written, and betrays every broken promise."""

import csv
import io
import json

import numpy as np
import pytest

from allcls_jax.config import DataConfig, SplitKind
from allcls_jax.data import partition_file, splits
from allcls_jax.data.cells import COLUMNS
from allcls_jax.data.splits import Split
from allcls_jax.errors import InputError
from tests.data.tables import digest, join, make_table, patients, planted

KEPT = (SplitKind.HELD_OUT, SplitKind.GROUPED)
LEAKY = (SplitKind.IMAGE, SplitKind.IMAGE_COPIES)


def divided(folder, kind: SplitKind = SplitKind.GROUPED, *, seed: int = 0):
    """A table with its partition, which is written into a folder."""
    table = join(
        make_table(patients()),
        make_table({"90": 6, "H91": 5, "92": 4}, part="prelim"),
    )
    table.sha256[3] = table.sha256[30]  # of patients 0 and 2
    part = splits.partition(table, DataConfig(split=kind), seed=seed)
    text = partition_file.to_csv(table, part)
    (folder / partition_file.PARTITION_FILE).write_text(text, encoding="utf-8")
    return table, part


def change(folder, edit) -> None:
    """Rewrites the file after `edit` has changed its rows."""
    path = folder / partition_file.PARTITION_FILE
    rows = partition_file.read(folder)
    header = list(rows[0])
    edit(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, header)
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")


def of(rows, use: Split) -> list[dict[str, str]]:
    return [row for row in rows if row["split"] == use]


@pytest.mark.parametrize("kind", SplitKind)
def test_every_row_comes_back_with_its_group_and_split(tmp_path, kind):
    table, part = divided(tmp_path, kind)
    rows = partition_file.read(tmp_path)
    assert list(rows[0]) == [*COLUMNS, "group", "split"]
    assert len(rows) == sum(map(len, part.rows().values()))
    place = {name: row for row, name in enumerate(table.image_id.tolist())}
    for use, chosen in part.rows().items():
        written = [place[row["image_id"]] for row in of(rows, use)]
        assert written == chosen.tolist()
    for row in rows:
        here = place[row["image_id"]]
        values = [str(column[here]) for column in table.columns()]
        assert [row[name] for name in COLUMNS] == values
        assert row["group"] == part.groups.group[here]
    assert {"0+2"} == {row["group"] for row in rows if row["patient"] in ("0", "2")}


def test_names_that_a_csv_must_quote_come_back(tmp_path):
    table = make_table(patients(4))
    table.image_id[0] = '1, "a"\n;~ü'
    part = splits.partition(table, DataConfig(split=SplitKind.IMAGE), seed=0)
    text = partition_file.to_csv(table, part)
    (tmp_path / partition_file.PARTITION_FILE).write_text(text, encoding="utf-8")
    names = {row["image_id"] for row in partition_file.read(tmp_path)}
    assert names == set(table.image_id.tolist())


@pytest.mark.parametrize("kind", SplitKind)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_was_divided_here_is_verified(tmp_path, kind, seed):
    table, part = divided(tmp_path, kind, seed=seed)
    tested = table.image_id[part.test]
    partition_file.verify(tmp_path, tested, kind)
    partition_file.verify(tmp_path, tested[::-1], kind)


@pytest.mark.parametrize("seed", range(5))
def test_random_cells_with_planted_twins_are_verified(tmp_path, seed):
    found = planted(seed, prelim=True)
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(found.audit()))
    for kind in KEPT:
        config = DataConfig(split=kind, groups=str(path), num_folds=2, test_fold=1)
        part = splits.partition(found.table, config, seed=seed)
        text = partition_file.to_csv(found.table, part)
        (tmp_path / partition_file.PARTITION_FILE).write_text(text)
        tested = found.table.image_id[part.test]
        partition_file.verify(tmp_path, tested, kind)


@pytest.mark.parametrize("kind", SplitKind)
@pytest.mark.parametrize(
    "change_them",
    [
        lambda names: names[1:],
        lambda names: np.append(names, names[0]),
        lambda names: np.append(names[1:], names[1]),
        lambda names: np.append(names[1:], "another"),
        lambda names: names[:0],
    ],
    ids=["one fewer", "one twice", "one for another", "a stranger", "none"],
)
def test_other_test_images_are_found(tmp_path, kind, change_them):
    table, part = divided(tmp_path, kind)
    tested = change_them(table.image_id[part.test])
    with pytest.raises(InputError, match="name different test images"):
        partition_file.verify(tmp_path, tested, kind)


@pytest.mark.parametrize("kind", SplitKind)
@pytest.mark.parametrize("use", [Split.TRAIN, Split.VALIDATION])
def test_an_image_that_was_also_trained_on_is_found_in_any_split(tmp_path, kind, use):
    table, part = divided(tmp_path, kind)
    change(
        tmp_path,
        lambda rows: rows.append(of(rows, Split.TEST)[0] | {"split": use}),
    )
    with pytest.raises(InputError, match=rf"image_id '.*' stands in test and in {use}"):
        partition_file.verify(tmp_path, table.image_id[part.test], kind)


# Who may share what: key → the splits that rule it out.
RULES = {
    "patient": (*KEPT, SplitKind.OFFICIAL),
    "group": KEPT,
    "sha256": KEPT,
}


@pytest.mark.parametrize("kind", SplitKind)
@pytest.mark.parametrize("key", RULES)
@pytest.mark.parametrize("use", [Split.TRAIN, Split.VALIDATION])
def test_each_promise_that_is_broken_is_found_and_no_other_asked(
    tmp_path, kind, key, use
):
    table, part = divided(tmp_path, kind)

    def share(rows) -> None:
        of(rows, use)[0][key] = of(rows, Split.TEST)[0][key] = "shared by two"

    change(tmp_path, share)
    tested = table.image_id[part.test]
    if kind in RULES[key]:
        with pytest.raises(InputError, match=f"{key} 'shared by two' stands in ") as e:
            partition_file.verify(tmp_path, tested, kind)
        assert f"data.split = '{kind}'" in str(e.value)
        assert str(use) in str(e.value)
    else:
        partition_file.verify(tmp_path, tested, kind)


def test_a_group_that_trains_and_validates_is_found(tmp_path):
    table, part = divided(tmp_path)

    def share(rows) -> None:
        of(rows, Split.TRAIN)[0]["group"] = of(rows, Split.VALIDATION)[0]["group"]

    change(tmp_path, share)
    with pytest.raises(
        InputError, match=r"group '.*' stands in train and in validation"
    ):
        partition_file.verify(tmp_path, table.image_id[part.test], SplitKind.GROUPED)


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"image_id,sha256,patient,group,split\n",
        b"image_id,sha256,patient,split\n1,2,3,test\n",
        b"image_id,sha256,patient,group,split\n1,2,3,4,tset\n",
        b"image_id,sha256,patient,group,split\n1,2,3,4\n",
        b"image_id,sha256,patient,group,split\n1,2,3,\xff,test\n",
        b"image_id,sha256,patient,group,split\n1,2,3,%s,test\n" % (b"x" * 200_000),
    ],
)
def test_a_file_that_is_no_partition_is_refused_by_name(tmp_path, data):
    path = tmp_path / partition_file.PARTITION_FILE
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(
        InputError, match=r"partition\.csv: cannot be read .*train again"
    ):
        partition_file.read(tmp_path)


# --- cells of another place


def shared(folder, table, **options) -> dict[str, int]:
    rows = partition_file.read(folder)
    return partition_file.shared_with_training(rows, table, **options)


def test_cells_that_were_trained_on_are_counted(tmp_path):
    table, part = divided(tmp_path)
    seen = np.concatenate([part.train, part.validation])
    other = make_table({"0": 3, "x": 4, "Hy": 2})
    other.sha256[:] = [digest(f"new {i}") for i in range(len(other))]
    # Two images of x were trained on, and one that was tested is of no weight.
    other.sha256[3:5] = table.sha256[seen[:2]]
    other.sha256[7] = table.sha256[part.test[0]]
    names = shared(tmp_path, other, same_patients=True)
    first = int("0" in table.patient[seen])
    assert names == {"images": 2, "patients": 1 + first}
    assert shared(tmp_path, other, same_patients=False) == {"images": 2, "patients": 1}


def test_patients_of_a_group_that_was_seen_count_too(tmp_path):
    table = make_table(patients())
    # In folds 0 and 1 of the official ones: 0 is tested, 2 trains.
    table.sha256[table.image_id == "0_0"] = table.sha256[table.image_id == "2_0"]
    config = DataConfig(split=SplitKind.OFFICIAL, test_fold=0)
    part = splits.partition(table, config, seed=0)
    assert set(table.patient[part.test].tolist()) >= {"0", "6"}
    text = partition_file.to_csv(table, part)
    (tmp_path / partition_file.PARTITION_FILE).write_text(text)
    other = make_table({"0": 3, "6": 3, "x": 3})
    other.sha256[:] = [digest(f"new {i}") for i in range(len(other))]
    assert shared(tmp_path, other, same_patients=True) == {"images": 0, "patients": 1}
    assert shared(tmp_path, other, same_patients=False) == {"images": 0, "patients": 0}


def test_every_image_of_the_run_itself_but_the_tested_is_shared(tmp_path):
    table, part = divided(tmp_path)
    found = shared(tmp_path, table.take(part.train), same_patients=True)
    number = len(np.unique(table.patient[part.train]))
    assert found == {"images": len(part.train), "patients": number}
    assert shared(tmp_path, table.take(part.test), same_patients=True) == {
        "images": 0,
        "patients": 0,
    }


def test_nothing_is_shared_with_a_run_that_saw_nothing(tmp_path):
    table = make_table({"0": 3})
    found = partition_file.shared_with_training([], table, same_patients=True)
    assert found == {"images": 0, "patients": 0}
