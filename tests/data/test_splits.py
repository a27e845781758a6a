"""Splits: what they promise about patients, and how they count."""

import hashlib
import json

import numpy as np
import pytest

from allcls_jax.config import DataConfig, SplitKind
from allcls_jax.data import splits
from allcls_jax.data.cells import NO_FOLD, CellTable, table_from_rows
from allcls_jax.errors import InputError


def make_table(
    sizes: dict[str, int], *, folds: bool = True, part: str = "train"
) -> CellTable:
    """A table of patients with that many images; HEM patients begin with H."""
    rows = []
    for number, (patient, size) in enumerate(sizes.items()):
        for image in range(size):
            label = 0 if patient.startswith("H") else 1
            fold = number // 2 % 3 if folds and part == "train" else NO_FOLD
            name = f"{patient}_{image}"
            digest = hashlib.sha256(name.encode()).hexdigest()
            rows.append((name, patient, label, part, fold, digest))
    return table_from_rows(rows)


def join(*tables: CellTable) -> CellTable:
    columns = (
        np.concatenate(c) for c in zip(*(t.columns() for t in tables), strict=True)
    )
    return CellTable(*columns)


def patients(number: int = 12, size: int = 10) -> dict[str, int]:
    return {f"{'H' if i % 2 else ''}{i}": size + 3 * (i % 4) for i in range(2 * number)}


@pytest.mark.parametrize("kind", [SplitKind.OFFICIAL, SplitKind.GROUPED])
@pytest.mark.parametrize("fold", [0, 1, 2])
@pytest.mark.parametrize("seed", [0, 5])
def test_no_patient_has_two_uses_and_no_image_is_lost(kind, fold, seed):
    table = make_table(patients())
    config = DataConfig(split=kind, test_fold=fold)
    part = splits.partition(table, config, seed=seed)
    everything = np.concatenate(list(part.rows().values()))
    assert sorted(everything.tolist()) == list(range(len(table)))
    seen = [set(table.patient[rows].tolist()) for rows in part.rows().values()]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    for rows in part.rows().values():
        assert set(table.label[rows].tolist()) == {0, 1}
    assert not part.leaky
    assert str(fold) in part.test_name


def test_official_test_is_the_fold():
    table = make_table(patients())
    part = splits.partition(table, DataConfig(test_fold=1), seed=0)
    assert np.array_equal(part.test, np.flatnonzero(table.fold == 1))


def test_three_grouped_folds_test_every_image_once():
    table = make_table(patients(), folds=False)
    tests = [
        splits.partition(
            table, DataConfig(split=SplitKind.GROUPED, test_fold=fold), seed=3
        ).test
        for fold in range(3)
    ]
    assert sorted(np.concatenate(tests).tolist()) == list(range(len(table)))


def test_validation_is_the_share_of_training_patients_of_each_class():
    table = make_table(patients(30))
    config = DataConfig(validation=0.25)
    part = splits.partition(table, config, seed=0)
    for label in (0, 1):
        chosen = np.unique(
            table.patient[part.validation][table.label[part.validation] == label]
        )
        assert len(chosen) == round(0.25 * 20)


def test_the_image_split_shares_patients_and_says_so():
    table = make_table(patients())
    config = DataConfig(split=SplitKind.IMAGE)
    part = splits.partition(table, config, seed=0)
    assert part.leaky
    assert "random" in part.test_name
    shared = np.intersect1d(table.patient[part.train], table.patient[part.test])
    assert len(shared) > 20
    everything = np.concatenate(list(part.rows().values()))
    assert sorted(everything.tolist()) == list(range(len(table)))
    with pytest.raises(AssertionError, match="in both"):
        splits.check(part, table.patient)


def test_the_labelled_preliminary_part_is_the_test_set():
    train = make_table(patients())
    prelim = make_table({"0": 4, "90": 6, "H91": 5}, part="prelim")
    table = join(train, prelim)
    part = splits.partition(table, DataConfig(), seed=0)
    assert part.test_name == "preliminary part"
    assert set(table.part[part.test].tolist()) == {"prelim"}
    assert len(part.test) == 15
    # Patient 0 stands in both parts and must not be trained on.
    trained = np.concatenate([part.train, part.validation])
    assert "0" not in table.patient[trained]


def test_groups_of_patients_stay_together(tmp_path):
    table = make_table(patients())
    groups = [["0", "2", "4"], ["H1", "H3"], ["6", "H5"]]
    path = tmp_path / "groups.json"
    path.write_text(json.dumps({"groups": groups}))
    for seed in range(4):
        config = DataConfig(split=SplitKind.GROUPED, groups=str(path))
        part = splits.partition(table, config, seed=seed)
        for group in groups:
            uses = [
                use
                for use, rows in part.rows().items()
                if np.isin(group, table.patient[rows]).any()
            ]
            assert len(uses) == 1, group


def test_a_group_of_nobody_is_refused(tmp_path):
    path = tmp_path / "groups.json"
    path.write_text('[["0", "2"], ["4", "zz"]]')
    config = DataConfig(split=SplitKind.GROUPED, groups=str(path))
    with pytest.raises(InputError, match="no such patients as zz"):
        splits.partition(make_table(patients()), config, seed=0)


@pytest.mark.parametrize(
    "content", ["", "{}", "[1, 2]", '{"groups": 3}', '[["0", "2"], ["2"]]']
)
def test_groups_that_are_none_are_refused(tmp_path, content):
    path = tmp_path / "groups.json"
    path.write_text(content)
    config = DataConfig(split=SplitKind.GROUPED, groups=str(path))
    with pytest.raises(InputError, match=r"data\.groups"):
        splits.partition(make_table(patients()), config, seed=0)


@pytest.mark.parametrize("number", [24, 25, 60, 100, 200])
def test_a_limit_keeps_every_patients_share(number):
    table = make_table(patients())
    rows = splits.limit(table, number)
    assert len(rows) == min(number, len(table))
    assert np.array_equal(rows, np.unique(rows))
    sizes = dict(zip(*np.unique(table.patient, return_counts=True), strict=True))
    kept = dict(zip(*np.unique(table.patient[rows], return_counts=True), strict=True))
    assert kept.keys() == sizes.keys()
    for patient, size in sizes.items():
        assert abs(kept[patient] - size * number / len(table)) <= 1


def test_a_limit_chooses_the_same_images_in_any_order():
    table = make_table(patients())
    order = np.random.default_rng(0).permutation(len(table))
    one = table.image_id[splits.limit(table, 60)]
    other = table.take(order)
    again = other.image_id[splits.limit(other, 60)]
    assert sorted(one.tolist()) == sorted(again.tolist())


def test_no_limit_leaves_the_unlabelled_out():
    table = make_table(patients())
    table.label[:5] = -1
    assert splits.limit(table, None).tolist() == list(range(5, len(table)))


def test_a_limit_below_the_number_of_patients_is_refused():
    with pytest.raises(InputError, match=r"data\.limit = 10.*24 patients"):
        splits.limit(make_table(patients()), 10)


@pytest.mark.parametrize(
    ("table", "config", "named"),
    [
        (
            make_table({f"{i}": 5 for i in range(9)}),
            DataConfig(),
            "no image of class HEM",
        ),
        (
            make_table(patients(), folds=False),
            DataConfig(),
            "split=grouped",
        ),
        (
            make_table({"0": 5, "H1": 5, "2": 5, "H3": 5}),
            DataConfig(split=SplitKind.GROUPED),
            "3 patients",
        ),
        (
            make_table({"0": 5, "H1": 5, "2": 5, "H3": 5}),
            DataConfig(),
            "test_fold",
        ),
        (
            make_table({"0": 5, "H1": 5, "2": 5, "H3": 5}),
            DataConfig(test_fold=1),
            "two patients of each class",
        ),
        (
            make_table({"0": 3, "H1": 3}),
            DataConfig(split=SplitKind.IMAGE),
            "3 images",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(table, config, named):
    with pytest.raises(InputError, match=named):
        splits.partition(table, config, seed=0)


def mixed_table(seed: int, *, folds: bool = False) -> CellTable:
    """Seven patients, four with images of both classes, in an order by seed."""
    kinds = ["A", "B", "H1", "AH1", "AH2", "AH3", "AH4"]
    names = np.random.default_rng(seed).permutation(kinds).tolist()
    rows = []
    for number, name in enumerate(names):
        for image in range(8):
            label = image % 2 if "AH" in name else int("H" not in name)
            digest = hashlib.sha256(f"{name}{image}".encode()).hexdigest()
            fold = number % 3 if folds else NO_FOLD
            rows.append(
                (f"{number}_{name}_{image}", name, label, "train", fold, digest)
            )
    return table_from_rows(rows)


@pytest.mark.parametrize("share", [0.15, 0.5])
def test_patients_of_both_classes_leave_both_in_every_use(share):
    config = DataConfig(split=SplitKind.GROUPED, validation=share)
    for seed in range(30):
        table = mixed_table(seed)
        part = splits.partition(table, config, seed=seed)
        for use, rows in part.rows().items():
            assert set(table.label[rows].tolist()) == {0, 1}, (seed, use)


def test_two_patients_of_both_classes_can_train_and_validate():
    table = make_table(dict.fromkeys(("0", "H1", "2", "H3"), 8))
    table.patient[:16], table.patient[16:] = "a", "b"
    tested = make_table({"90": 4, "H91": 4}, part="prelim")
    for seed in range(20):
        part = splits.partition(join(table, tested), DataConfig(), seed=seed)
        assert len(part.train) == len(part.validation) == 16


@pytest.mark.parametrize(
    "patients_of",  # (class, or 2 for both; images)
    [
        [(2, 9), (1, 11), (2, 3), (0, 10), (1, 2), (1, 5)],
        [(0, 8), (0, 9), (2, 3), (2, 5), (2, 11)],
        [(2, 9), (0, 5), (2, 3), (2, 7), (1, 5)],
    ],
)
@pytest.mark.parametrize("fold", [0, 1, 2])
def test_folds_are_drawn_until_each_can_be_tested(patients_of, fold):
    rows = [
        (f"{i}_{k}", f"p{i}", k % 2 if kind == 2 else kind, "train", NO_FOLD, f"{i}{k}")
        for i, (kind, size) in enumerate(patients_of)
        for k in range(size)
    ]
    config = DataConfig(split=SplitKind.GROUPED, test_fold=fold)
    table = table_from_rows(rows)
    part = splits.partition(table, config, seed=0)
    for chosen in part.rows().values():
        assert set(table.label[chosen].tolist()) == {0, 1}


def test_a_draw_that_takes_the_last_of_a_class_is_drawn_again():
    table = make_table(dict.fromkeys(("0", "H1", "2", "H3"), 8))
    # Both classes; to validate with 0 and this one would leave H1 alone.
    table.patient[16:] = "b"
    tested = make_table({"90": 4, "H91": 4}, part="prelim")
    for seed in range(20):
        part = splits.partition(join(table, tested), DataConfig(), seed=seed)
        assert len(part.train) == len(part.validation) == 16


def test_a_draw_that_leaves_one_class_is_refused(monkeypatch):
    table = make_table(patients())
    # Whatever is drawn: first every ALL patient validates, then only one.
    patient = np.unique(table.patient[(table.label == 1) & (table.fold == 0)])
    every = np.unique(table.patient[table.label == 1])
    monkeypatch.setattr(splits, "_validation_groups", lambda *_: every)
    with pytest.raises(InputError, match=r"training: no image of class ALL"):
        splits.partition(table, DataConfig(), seed=0)
    monkeypatch.setattr(splits, "_validation_groups", lambda *_: patient[:1])
    with pytest.raises(InputError, match=r"validation: .* HEM .*data\.validation"):
        splits.partition(table, DataConfig(), seed=0)


def test_the_image_split_leaves_both_classes_to_train():
    table = make_table({"0": 6, "H1": 60})
    config = DataConfig(split=SplitKind.IMAGE, validation=0.95)
    part = splits.partition(table, config, seed=0)
    for rows in part.rows().values():
        assert set(table.label[rows].tolist()) == {0, 1}


def test_official_folds_that_divide_a_tested_patient_are_refused():
    table = make_table(patients())
    row = int(np.flatnonzero((table.fold == 0) & (table.patient == "0"))[0])
    table.fold[row] = 2
    with pytest.raises(InputError, match=r"(?s)1 problem\n.*patient 0\n.*=grouped"):
        splits.partition(table, DataConfig(), seed=0)
    # Nobody is tested on what was trained: 0 and 2 both train.
    part = splits.partition(table, DataConfig(test_fold=1), seed=0)
    assert "0" not in table.patient[part.test]
    splits.partition(table, DataConfig(split=SplitKind.GROUPED), seed=0)


@pytest.mark.parametrize(
    "divide",
    [
        lambda table: splits.limit(table, None),
        lambda table: splits.limit(table, 3),
        lambda table: splits.partition(table, DataConfig(), seed=0),
    ],
)
def test_the_final_part_is_told_to_have_no_labels(divide):
    table = make_table({"0": 3, "H1": 2}, part="final")
    table.label[:] = -1
    with pytest.raises(InputError, match=r"5 of 5 .*final part.*never published"):
        divide(table)


def test_nothing_labelled_is_told():
    table = make_table({"0": 3, "H1": 2})
    table.label[:] = -1
    with pytest.raises(InputError, match="no labelled image among 5") as error:
        splits.limit(table, None)
    assert "final" not in str(error.value)


def test_images_dropped_for_a_tested_patient_are_counted():
    train = make_table(patients())
    prelim = make_table({"0": 4, "90": 6, "H91": 5}, part="prelim")
    part = splits.partition(join(train, prelim), DataConfig(), seed=0)
    assert part.dropped == int(np.sum(train.patient == "0")) > 0
    used = sum(len(rows) for rows in part.rows().values())
    assert used + part.dropped == len(train) + len(prelim)
    assert splits.partition(train, DataConfig(), seed=0).dropped == 0
