"""Splits: what they promise about patients, and how they count."""

import dataclasses
import json

import numpy as np
import pytest

from allcls_jax.config import DataConfig, SplitKind
from allcls_jax.data import splits
from allcls_jax.data.cells import NO_FOLD, CellTable, Part, table_from_rows
from allcls_jax.data.groups import find_groups
from allcls_jax.data.splits import Partition, Split
from allcls_jax.errors import InputError
from tests.data.tables import (
    digest,
    join,
    known_twins,
    make_table,
    patients,
    planted,
    sharing,
)


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
            DataConfig(split=SplitKind.OFFICIAL),
            r"'official': the data comes without folds.*split=grouped",
        ),
        (
            make_table(patients()),
            DataConfig(num_folds=5),
            r"data\.num_folds = 5: the data comes with 3 folds.*split=grouped",
        ),
        (
            make_table(patients()),
            DataConfig(split=SplitKind.HELD_OUT),
            "'held_out': there is no labelled preliminary part",
        ),
        (
            join(make_table(patients()), make_table({"90": 5}, part="prelim")),
            DataConfig(),
            r"\(preliminary part\): no image of class HEM.*split=official",
        ),
        (
            make_table({"90": 5, "H91": 5}, part="prelim"),
            DataConfig(),
            "the training part: no image of class ALL",
        ),
        (
            join(make_table({"0": 9}), make_table({"90": 5, "H91": 5}, part="prelim")),
            DataConfig(split=SplitKind.IMAGE),
            "the training part: no image of class HEM",
        ),
        (
            make_table({"0": 30, "H1": 9}),
            DataConfig(split=SplitKind.IMAGE_COPIES, num_folds=5),
            r"'image_copies': 9 images of class HEM; 5 folds need at least 10",
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
            fold = number % 3 if folds else NO_FOLD
            image_id = f"{number}_{name}_{image}"
            rows.append((image_id, name, label, "train", fold, digest(image_id), 100))
    return table_from_rows(rows)


@pytest.mark.parametrize("share", [0.15, 0.5])
def test_patients_of_both_classes_leave_both_in_every_use(share):
    config = DataConfig(split=SplitKind.GROUPED, validation=share)
    for seed in range(12):
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
        (
            f"{i}_{k}",
            f"p{i}",
            k % 2 if kind == 2 else kind,
            "train",
            NO_FOLD,
            f"{i}-{k}",
            9,
        )
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
    # An image of 2 is tested as one of H91: nobody of its group trains.
    prelim.sha256[-1] = train.sha256[train.patient == "2"][0]
    table = join(train, prelim)
    part = splits.partition(table, DataConfig(), seed=0)
    (reason, number), *others = part.left_out.items()
    assert number == int(np.isin(train.patient, ("0", "2")).sum()) == 26
    assert "tested" in reason
    assert not others
    used = sum(len(rows) for rows in part.rows().values())
    assert used + number == len(table)
    assert splits.partition(train, DataConfig(), seed=0).left_out == {}


@pytest.mark.parametrize(
    "kind", [SplitKind.OFFICIAL, SplitKind.GROUPED, SplitKind.IMAGE]
)
def test_folds_are_of_the_training_part_alone(kind):
    prelim = make_table({"0": 4, "90": 6, "H91": 5}, part="prelim")
    table = join(prelim, make_table(patients()))
    part = splits.partition(table, DataConfig(split=kind), seed=0)
    used = np.concatenate(list(part.rows().values()))
    assert sorted(used.tolist()) == list(range(15, len(table)))
    assert list(part.left_out.values()) == [15]


def test_the_split_follows_the_table():
    train, bare = make_table(patients()), make_table(patients(), folds=False)
    prelim = make_table({"90": 3, "H91": 3}, part="prelim")
    final = make_table({"f": 3}, part="final")
    final.label[:] = -1
    unlabelled = make_table({"90": 3}, part="prelim")
    unlabelled.label[:] = -1
    for tables, kind in (
        ((train,), SplitKind.OFFICIAL),
        ((bare,), SplitKind.GROUPED),
        ((train, make_table({"Hx": 1}, folds=False)), SplitKind.GROUPED),
        ((train, prelim), SplitKind.HELD_OUT),
        ((bare, prelim), SplitKind.HELD_OUT),
        ((train, unlabelled, final), SplitKind.OFFICIAL),
    ):
        assert splits.split_kind(join(*tables), DataConfig()) is kind
        for given in SplitKind:
            config = DataConfig(split=given)
            assert splits.split_kind(join(*tables), config) is given


# --- what a split promises, on random tables with planted twins


def sides(part: Partition, number: int) -> np.ndarray:
    """(number,): 0, 1, 2 for training, validation, test and -1 for no use."""
    side = np.full(number, -1)
    for i, rows in enumerate(part.rows().values()):
        assert np.all(side[rows] == -1)
        assert np.all(np.diff(rows) > 0)
        side[rows] = i
    return side


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", [SplitKind.GROUPED, SplitKind.HELD_OUT])
@pytest.mark.parametrize("listed", [False, True])
def test_no_group_and_no_known_twin_stands_on_two_sides(kind, seed, listed, tmp_path):
    found = planted(seed, prelim=True)
    table = found.table
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(found.audit()))
    twins = known_twins(table, found.exact * listed, found.near * listed)
    group_of = sharing(found, listed=listed)
    assert len(twins) >= 8
    for fold in range(2):
        config = DataConfig(
            split=kind,
            num_folds=2,
            test_fold=fold,
            groups=str(path) if listed else None,
        )
        part = splits.partition(table, config, seed=seed)
        side = sides(part, len(table))
        for i, j in twins:
            assert side[i] == side[j] or -1 in (side[i], side[j])
        seen: dict[frozenset, set[int]] = {}
        for patient, use in zip(table.patient.tolist(), side.tolist(), strict=True):
            if use >= 0:
                seen.setdefault(group_of[patient], set()).add(use)
        assert all(len(uses) == 1 for uses in seen.values())
        assert len(seen) > 6
        for row in part.summary(table):
            assert row["shared_groups"] == row["twins"] == 0
        if kind is SplitKind.HELD_OUT:
            assert np.all(table.part[part.test] == Part.PRELIM)
            assert len(part.test) == np.sum(table.part == Part.PRELIM)


def official(seed: int):
    """A random table whose folds keep patients whole, and its audit."""
    found = planted(seed, links=3)
    names, number = np.unique(found.table.patient, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(np.arange(len(names)) % 3)
    found.table.fold[:] = fold[number]
    return found


@pytest.mark.parametrize("seed", range(6))
def test_official_folds_keep_patients_whole_and_count_what_they_share(seed, tmp_path):
    found = official(seed)
    table = found.table
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(found.audit()))
    group_of = sharing(found)
    twins = known_twins(table, found.exact, found.near)
    shared = 0
    for fold in range(3):
        config = DataConfig(
            split=SplitKind.OFFICIAL, test_fold=fold, groups=str(path), validation=0.4
        )
        part = splits.partition(table, config, seed=seed)
        side = sides(part, len(table))
        assert np.array_equal(part.test, np.flatnonzero(table.fold == fold))
        for patient in np.unique(table.patient):
            assert len(np.unique(side[table.patient == patient])) == 1
        groups = [
            {group_of[name] for name in table.patient[side == i].tolist()}
            for i in range(3)
        ]
        # Validation is ours, and shares no group with training.
        assert not groups[0] & groups[1]
        for i, row in enumerate(part.summary(table)):
            tested = {b for a, b in twins if side[a] == i and side[b] == 2}
            assert row["groups"] == len(groups[i])
            assert row["twins"] == (len(tested) if i < 2 else 0)
            assert row["shared_groups"] == (len(groups[i] & groups[2]) if i < 2 else 0)
            if i < 2:
                assert part.twins_of(Split(str(row["use"]))).tolist() == sorted(tested)
                shared += len(tested)
    assert shared > 5


def test_three_identical_images_in_three_uses_count_for_each():
    table = make_table(patients())
    part = splits.partition(table, DataConfig(split=SplitKind.IMAGE), seed=0)
    rows = [part.train[0], part.validation[0], part.test[0]]
    table.sha256[rows] = digest("one")
    part = splits.partition(table, DataConfig(split=SplitKind.IMAGE), seed=0)
    counts = [row["twins"] for row in part.summary(table)]
    assert counts == [1, 1, 0]


def test_the_table_of_a_partition_counts_what_stands_on_each_side():
    table = make_table({"0": 9, "H1": 9, "2": 9, "H3": 9})
    table.sha256[0] = table.sha256[table.patient == "2"][0]
    groups = find_groups(table, None)
    part = Partition(
        train=np.arange(5, 20),
        validation=np.arange(20, 36),
        test=np.arange(5),
        test_name="five",
        leaky=True,
        groups=groups,
    )
    # Rows: 0-8 are of 0, 9-17 of H1, 18-26 of 2, 27-35 of H3; 0 and 2 are a group.
    assert part.summary(table) == [
        {
            "use": "train",
            "images": 15,
            "patients": 3,
            "groups": 2,
            "ALL": 6,
            "HEM": 9,
            "shared_groups": 1,
            "twins": 1,
        },
        {
            "use": "validation",
            "images": 16,
            "patients": 2,
            "groups": 2,
            "ALL": 7,
            "HEM": 9,
            "shared_groups": 1,
            "twins": 0,
        },
        {
            "use": "test",
            "images": 5,
            "patients": 1,
            "groups": 1,
            "ALL": 5,
            "HEM": 0,
            "shared_groups": 0,
            "twins": 0,
        },
    ]


@pytest.mark.parametrize("kind", SplitKind)
def test_test_images_do_not_depend_on_the_seed_and_validation_does(kind):
    table = join(make_table(patients()), make_table({"90": 6, "H91": 5}, part="prelim"))
    parts = [splits.partition(table, DataConfig(split=kind), seed=i) for i in range(6)]
    for part in parts[1:]:
        assert np.array_equal(part.test, parts[0].test)
    drawn = {tuple(part.validation.tolist()) for part in parts}
    assert len(drawn) > 3
    again = splits.partition(table, DataConfig(split=kind), seed=4)
    assert np.array_equal(again.validation, parts[4].validation)
    assert np.array_equal(again.train, parts[4].train)


@pytest.mark.parametrize("kind", [SplitKind.GROUPED, SplitKind.IMAGE])
def test_the_repeat_draws_other_test_images_and_all_folds_test_every_image(kind):
    table = make_table(patients())
    seen = []
    for repeat in range(2):
        tests = []
        for fold in range(4):
            config = DataConfig(split=kind, num_folds=4, test_fold=fold, repeat=repeat)
            tests.append(splits.partition(table, config, seed=0).test)
        every = np.concatenate(tests)
        assert sorted(every.tolist()) == list(range(len(table)))
        seen.append({tuple(rows.tolist()) for rows in tests})
    assert not seen[0] & seen[1]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (SplitKind.GROUPED, r"3 folds need 3 .* there are 1 \(ALL\) and 1 \(HEM\)"),
        (SplitKind.HELD_OUT, r"two patients of each class.* 0 \(ALL\) and 0 \(HEM\)"),
    ],
)
def test_one_group_that_spans_everything_is_refused(kind, told):
    table = join(make_table(patients()), make_table({"90": 6, "H91": 5}, part="prelim"))
    first = np.unique(table.patient, return_index=True)[1]
    table.sha256[first] = digest("one")
    with pytest.raises(InputError, match=told):
        splits.partition(table, DataConfig(split=kind), seed=0)


def test_patients_of_one_image_each_can_be_divided():
    sizes = {f"{'H' if i % 2 else ''}{i}": 1 for i in range(60)}
    table = make_table(sizes, folds=False)
    for fold in range(3):
        part = splits.partition(table, DataConfig(test_fold=fold), seed=fold)
        assert [len(rows) for rows in part.rows().values()] == [34, 6, 20]
        for rows in part.rows().values():
            assert np.mean(table.label[rows]) == 0.5


def test_a_limit_between_identical_images_is_the_same_in_any_order():
    table = make_table(patients())
    table.sha256[:] = digest("one")
    order = np.random.default_rng(0).permutation(len(table))
    one = table.image_id[splits.limit(table, 60)]
    other = table.take(order)
    again = other.image_id[splits.limit(other, 60)]
    assert sorted(one.tolist()) == sorted(again.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_a_limit_keeps_shares_of_patients_large_and_small(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 3, size=400)
    sizes[:20] = rng.integers(50, 200, size=20)
    table = make_table({str(i): int(size) for i, size in enumerate(sizes)})
    for number in (400, 401, 700, int(sizes.sum()) - 1):
        rows = splits.limit(table, number)
        assert len(rows) == len(np.unique(rows)) == number
        kept = np.array([np.sum(table.patient[rows] == str(i)) for i in range(400)])
        assert kept.min() >= 1
        assert np.all(kept <= sizes)
        # Whoever has more images keeps no fewer.
        order = np.argsort(sizes, kind="stable")
        large = sizes[order][-20:] * number / sizes.sum()
        assert np.all(np.diff(kept[order][-20:]) >= -1)
        assert np.all(kept[order][-20:] <= large + 1)


# --- a mistake of ours does not get past


def test_folds_that_divide_a_group_are_noticed(monkeypatch):
    table = make_table(patients())
    table.sha256[0] = table.sha256[table.patient == "2"][0]

    def by_patient(label, group, num_folds, *, repeat):
        return np.array([int(name.strip("H")) // 2 % 3 for name in table.patient])

    monkeypatch.setattr(splits, "draw_folds", by_patient)
    config = DataConfig(split=SplitKind.GROUPED, test_fold=0)
    with pytest.raises(AssertionError, match=r"\['0\+2'\] in both"):
        splits.partition(table, config, seed=0)


def test_folds_that_divide_a_patient_are_noticed(monkeypatch):
    table = make_table(patients())
    table.fold[0] = 2
    monkeypatch.setattr(splits, "_require_whole", lambda *_: None)
    with pytest.raises(AssertionError, match=r"\['0'\] in both"):
        splits.partition(table, DataConfig(), seed=0)


def test_a_twin_that_groups_forgot_is_noticed(monkeypatch):
    table = make_table(patients())
    first = np.unique(table.patient, return_index=True)[1]
    table.sha256[first] = digest("one")

    def forgetful(table, path, **others):
        found = find_groups(table, path, **others)
        return dataclasses.replace(found, group=table.patient)

    monkeypatch.setattr(splits, "find_groups", forgetful)
    with pytest.raises(AssertionError, match="a twin in both train and test"):
        splits.partition(table, DataConfig(split=SplitKind.GROUPED), seed=0)


# --- the real cells


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_grouped_folds_of_the_real_cells_divide_no_group(cnmc_table, fold):
    table = cnmc_table
    for repeat in range(2):
        config = DataConfig(split=SplitKind.GROUPED, test_fold=fold, repeat=repeat)
        part = splits.partition(table, config, seed=repeat)
        side = sides(part, len(table))
        assert side.min() == 0
        for row in part.summary(table):
            assert row["shared_groups"] == row["twins"] == 0
            assert row["ALL"]
            assert row["HEM"]
        for use in range(3):
            for key in (table.patient, table.sha256, part.groups.group):
                assert not len(np.intersect1d(key[side == use], key[side != use]))
        assert abs(len(part.test) / len(table) - 1 / 3) < 0.02


def test_official_folds_of_the_real_cells_share_what_is_known(cnmc_table):
    table, twins = cnmc_table, []
    for fold, size in enumerate((3527, 3581, 3553)):
        config = DataConfig(split=SplitKind.OFFICIAL, test_fold=fold)
        part = splits.partition(table, config, seed=0)
        assert len(part.test) == size
        train, validation, _ = part.summary(table)
        assert int(train["shared_groups"]) + int(validation["shared_groups"]) > 0
        twins.append(int(train["twins"]) + int(validation["twins"]))
    # Each of 94 pairs across folds is tested from both sides.
    assert sum(twins) == 2 * 94
