import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from allcls_jax.errors import InputError
from allcls_jax.serving.model import Prediction, failed
from allcls_jax.serving.prediction import tables


def rows(number: int = 3) -> list[dict[str, Any]]:
    """Rows as they come from the work log, every third one a failure."""
    made = []
    for i in range(number):
        if i % 3 == 2:
            row = failed(f"bad {i}.png", "cut, off", "p2")
        else:
            row = Prediction(
                f"größe,{i}.png",
                "p1" if i % 2 else None,
                (i + 1) / 7,
                "ALL" if i % 2 else "HEM",
                0.5,
                bool(i % 2),
                ("odd colours", "large") if i % 2 else (),
            )
        made.append(json.loads(json.dumps(row.to_dict())))
    return made


def write(out: Path, found: list[dict[str, Any]], block: int = 2) -> None:
    with tables.open_table(out, beside=out.parent, about={"note": "x"}) as add:
        for begin in range(0, len(found), block):
            add(found[begin : begin + block])


def test_csv_has_a_row_for_each_image(tmp_path: Path):
    write(tmp_path / "t.csv", rows())
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        header, first, second, third = csv.reader(file)
    assert header == [
        *("image", "patient", "probability", "decision", "uncertainty"),
        *("abstain", "warnings", "error"),
    ]
    assert first == ["größe,0.png", "", "0.1428571", "HEM", "0.5", "false", "", ""]
    assert second == [
        *("größe,1.png", "p1", "0.2857143", "ALL", "0.5", "true"),
        *("odd colours; large", ""),
    ]
    assert third == ["bad 2.png", "p2", "", "", "", "", "", "cut, off"]


def test_json_lines_are_the_rows(tmp_path: Path):
    write(tmp_path / "t.JSONL", rows())
    lines = (tmp_path / "t.JSONL").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows()


def test_parquet_has_the_rows_and_what_they_are(tmp_path: Path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(tables, "_ROW_GROUP", 4)
    write(tmp_path / "t.parquet", rows(10))
    found = parquet.read_table(tmp_path / "t.parquet")
    assert found.to_pylist() == rows(10)
    assert found.schema.metadata == {b"note": b"x"}
    assert parquet.ParquetFile(tmp_path / "t.parquet").num_row_groups == 3


@pytest.mark.parametrize("suffix", tables.Format)
def test_bytes_do_not_depend_on_how_the_rows_come(tmp_path: Path, suffix: str):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    for block in (1, 50):
        write(tmp_path / f"t{block}{suffix}", rows(50), block)
    first, second = (tmp_path / f"t{block}{suffix}" for block in (1, 50))
    assert first.read_bytes() == second.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("suffix", tables.Format)
def test_table_that_fails_leaves_the_old_one(tmp_path: Path, suffix: str):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"t{suffix}"
    out.write_bytes(b"old")

    def interrupted() -> None:
        with tables.open_table(out, beside=tmp_path) as add:
            add(rows())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["t.xlsx", "t", "t.csv.gz"])
def test_other_suffixes_are_refused(name: str):
    with pytest.raises(InputError, match=r"must be one of \.csv, \.jsonl, \.parquet"):
        tables.format_of(Path(name))


def test_parquet_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'allcls-jax\[parquet\]'"):
        tables.format_of(Path("t.parquet"))
    assert tables.format_of(Path("t.csv")) is tables.Format.CSV


def test_patients_are_rolled_up_in_natural_order(tmp_path: Path):
    found = [
        Prediction("a", "10", 0.25, "HEM", 0.5, False),
        Prediction("b", "9", 0.5, "HEM", 1.0, True),
        failed("c", "broken", "10"),
        Prediction("d", "10", 0.75, "ALL", 0.5, True),
        Prediction("e", None, 1.0, "ALL", 0.0, False),
        failed("f", "broken", "x"),
    ]
    lines = [tables.patient_line(row.to_dict()) for row in found]
    assert lines[4] is None
    known = [line for line in lines if line]
    out = tmp_path / "p.csv"
    assert tables.write_patients(known, out, beside=tmp_path) == 3
    with out.open(newline="") as file:
        assert list(csv.reader(file)) == [
            [
                *("patient", "images", "read", "mean_probability", "share_all"),
                *("abstained", "failed"),
            ],
            ["9", "1", "1", "0.5", "0.0", "1", "0"],
            ["10", "3", "2", "0.5", "0.5", "1", "1"],
            ["x", "1", "0", "", "", "0", "1"],
        ]
    assert list(tmp_path.iterdir()) == [out]
