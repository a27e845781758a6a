"""Groups: whoever shares a cell is joined, over any chain, and nobody else is."""

import json
from pathlib import Path

import numpy as np
import pytest

from allcls_jax.data.groups import find_groups
from allcls_jax.errors import InputError
from tests.data.tables import Planted, digest, known_twins, make_table, planted, sharing


def write(folder: Path, content: object) -> str:
    path = folder / "audit.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def small():
    return make_table({"1": 3, "2": 3, "7": 2, "H1": 3, "H2": 2})


def row_of(table, image_id: str) -> int:
    return table.image_id.tolist().index(image_id)


def name_of(table, groups, patient: str) -> str:
    (name,) = np.unique(groups.group[table.patient == patient])
    return name


def test_patients_that_share_nothing_are_groups_of_one():
    table = small()
    groups = find_groups(table, None)
    assert np.array_equal(groups.group, table.patient)
    rows = np.arange(len(table))
    assert not len(groups.twins_among(rows[:5], rows[5:]))


def test_patients_with_an_identical_image_are_joined_by_name():
    table = small()
    table.sha256[row_of(table, "7_1")] = table.sha256[row_of(table, "2_0")]
    table.sha256[row_of(table, "1_2")] = table.sha256[row_of(table, "2_1")]
    groups = find_groups(table, None)
    assert sorted(set(groups.group.tolist())) == ["1+2+7", "H1", "H2"]
    assert name_of(table, groups, "7") == "1+2+7"


def test_identical_images_of_both_labels_join_their_patients():
    table = small()
    table.sha256[row_of(table, "H2_0")] = table.sha256[row_of(table, "1_0")]
    assert name_of(table, find_groups(table, None), "1") == "1+H2"


def test_the_order_of_rows_changes_nothing(tmp_path):
    found = planted(3)
    path = write(tmp_path, found.audit())
    groups = find_groups(found.table, path)
    order = np.random.default_rng(0).permutation(len(found.table))
    again = find_groups(found.table.take(order), path)
    assert np.array_equal(again.group, groups.group[order])


def of_patients(found: Planted, groups) -> dict[str, frozenset]:
    """Patient → the patients of its group."""
    patient = found.table.patient
    return {
        name: frozenset(
            patient[np.isin(groups.group, groups.group[patient == name])].tolist()
        )
        for name in np.unique(patient).tolist()
    }


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("listed", [False, True])
def test_groups_are_all_that_chains_of_shared_cells_join(seed, listed, tmp_path):
    found = planted(seed, prelim=seed % 2 == 0, links=seed % 6)
    path = write(tmp_path, found.audit()) if listed else None
    here = frozenset(found.table.patient.tolist())
    expected = {
        name: names & here for name, names in sharing(found, listed=listed).items()
    }
    assert of_patients(found, find_groups(found.table, path)) == expected
    if seed % 6:
        assert max(map(len, expected.values())) > 1, "nothing was tested"


@pytest.mark.parametrize("seed", range(6))
def test_twins_are_those_that_a_comparison_of_all_finds(seed, tmp_path):
    found = planted(seed, links=12)
    groups = find_groups(found.table, write(tmp_path, found.audit()))
    twins = known_twins(found.table, found.exact, found.near)
    side = np.random.default_rng(seed).integers(2, size=len(found.table))
    rows, others = np.flatnonzero(side == 0), np.flatnonzero(side)
    expected = sorted({i for i, j in twins if side[i] == 0 and side[j] == 1})
    assert groups.twins_among(rows, others).tolist() == expected
    assert len(expected) > 5


def test_of_three_identical_images_each_is_every_others_twin():
    table = small()
    rows = [row_of(table, name) for name in ("1_0", "2_0", "7_0")]
    table.sha256[rows] = digest("one")
    groups = find_groups(table, None)
    for row in rows:
        for other in rows:
            if row != other:
                found = groups.twins_among(np.array([row]), np.array([other]))
                assert found.tolist() == [row]


def test_what_is_close_to_one_of_identical_images_is_close_to_all(tmp_path):
    table = small()
    table.sha256[row_of(table, "2_0")] = table.sha256[row_of(table, "1_0")]
    audit = {"groups": [], "near_duplicates": [["1_0", "7_0", 1.5]]}
    groups = find_groups(table, write(tmp_path, audit))
    seven, two = (np.array([row_of(table, name)]) for name in ("7_0", "2_0"))
    assert groups.twins_among(seven, two).tolist() == seven.tolist()
    assert groups.twins_among(two, seven).tolist() == two.tolist()
    assert name_of(table, groups, "7") == "1+2+7"


def test_a_patient_who_is_not_here_joins_those_of_its_group_all_the_same(tmp_path):
    # Whichever place it has in the list.
    table = small()
    for group in (["0", "1", "2"], ["1", "0", "2"], ["1", "2", "zero"]):
        audit = {
            "patients": [*np.unique(table.patient), "0", "zero"],
            "groups": [group],
        }
        groups = find_groups(table, write(tmp_path, audit))
        assert name_of(table, groups, "2") == "1+2"


@pytest.mark.parametrize("key", ["exact_duplicates", "near_duplicates"])
def test_an_image_that_is_not_here_joins_the_patients_of_its_twins(key, tmp_path):
    table = small()
    audit = {"groups": [], key: [["1_0", "gone"], ["gone", "H1_0"]]}
    groups = find_groups(table, write(tmp_path, audit))
    assert name_of(table, groups, "1") == "1+H1"


def test_pairs_alone_join_patients(tmp_path):
    table = small()
    audit = {
        "groups": [],
        "exact_duplicates": [["1_0", "2_0"]],
        "near_duplicates": [["H1_0", "H2_1", 0.5], ["7_0", "7_1", 0.5]],
    }
    groups = find_groups(table, write(tmp_path, audit))
    assert sorted(set(groups.group.tolist())) == ["1+2", "7", "H1+H2"]


@pytest.mark.parametrize("whole", [False, True])
def test_lists_of_patients_are_enough(whole, tmp_path):
    lists = [["7", "1"], ["H1"], [], [2, "H2"]]
    path = write(tmp_path, {"groups": lists} if whole else lists)
    groups = find_groups(small(), path)
    assert sorted(set(groups.group.tolist())) == ["1+7", "2+H2", "H1"]


def test_the_name_of_a_large_group_stays_short():
    sizes = {f"{i:03}": 2 for i in range(300)} | {f"H{i:03}": 2 for i in range(3)}
    table = make_table(sizes)
    first = [row_of(table, f"{i:03}_0") for i in range(290)]
    table.sha256[first] = digest("one")
    table.sha256[[row_of(table, f"H00{i}_0") for i in (0, 1)]] = digest("other")
    groups = find_groups(table, None)
    assert len(set(groups.group.tolist())) == 1 + 10 + 2
    assert max(map(len, groups.group.tolist())) < 70
    assert name_of(table, groups, "289").endswith("+010+011+… 278 more")


def test_an_audit_of_other_cells_is_refused_with_their_patients(tmp_path):
    audit = {"patients": ["1", "2", "H1", "9"], "groups": [["1", "2"]]}
    path = write(tmp_path, audit)
    with pytest.raises(InputError, match="is the audit of other cells") as error:
        find_groups(small(), path)
    assert "2 problems" in str(error.value)
    assert "patient 7 is" in str(error.value)
    assert "patient H2 is" in str(error.value)
    assert "patient 1 is" not in str(error.value)


def test_a_patient_whom_nobody_audited_and_nobody_has_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such patients as H9, zz;"):
        find_groups(small(), write(tmp_path, [["1", "zz"], ["H1", "H9"]]))


@pytest.mark.parametrize("lists", [[["1", "2"], ["2", "7"]], [["1", "2", "1"]]])
def test_a_patient_who_stands_there_twice_is_refused(lists, tmp_path):
    with pytest.raises(InputError, match=r"patient '[12]' stands there twice"):
        find_groups(small(), write(tmp_path, lists))


@pytest.mark.parametrize(
    "content",
    [
        {},
        3,
        None,
        "1",
        ["1", "2"],
        {"groups": 3},
        {"groups": {"a": ["1", "2"]}},
        {"groups": ["12"]},
        {"groups": [], "patients": 3},
        {"groups": [], "patients": {"1": 3}},
        {"groups": [], "exact_duplicates": None},
        {"groups": [], "exact_duplicates": ["ab"]},
        {"groups": [], "near_duplicates": [["1_0"]]},
        {"groups": [], "near_duplicates": [{"one": "1_0", "other": "2_0"}]},
    ],
)
def test_a_file_of_another_form_is_refused_by_name(content, tmp_path):
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=r"data\.groups = '.*audit\.json': must be"):
        find_groups(small(), path)


@pytest.mark.parametrize("data", [b"", b"[", b"\xff\xfe\x00"])
def test_a_file_that_is_no_json_is_refused_by_name(data, tmp_path):
    path = tmp_path / "groups.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"data\.groups = .*must be what the audit"):
        find_groups(small(), str(path))
    for other in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(InputError, match=r"data\.groups = .*Error"):
            find_groups(small(), str(other))


def test_the_real_cells_share_files_across_patients_and_folds(cnmc_table):
    table = cnmc_table
    assert len(table) == 10661
    assert len(np.unique(table.patient)) == 73
    groups = find_groups(table, None)
    # Of the official files, and of the same cells as JPEG.
    assert len(table) - len(np.unique(groups.cell)) in (106, 104)
    across = 0
    for fold in range(3):
        inside, outside = table.fold == fold, table.fold != fold
        across += len(
            groups.twins_among(np.flatnonzero(inside), np.flatnonzero(outside))
        )
    assert across == 2 * 94
    assert 60 < len(np.unique(groups.group)) <= 66
    assert name_of(table, groups, "20") == "20+21"


def test_a_list_may_name_patients_who_are_left_out(tmp_path):
    table = small()
    path = write(tmp_path, [["1", "gone", "2"]])
    with pytest.raises(InputError, match="gone"):
        find_groups(table, path)
    groups = find_groups(table, path, absent=["gone"])
    assert name_of(table, groups, "2") == "1+2"
