import random
from pathlib import Path
from typing import Any

import pytest

from allcls_jax.serving.prediction import disk_sort
from allcls_jax.serving.prediction.disk_sort import sorted_lines


@pytest.fixture(autouse=True)
def _short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_sort, "_LINES", 7)
    monkeypatch.setattr(disk_sort, "_RUNS", 3)


@pytest.mark.parametrize("number", [0, 1, 7, 8, 22, 500])
def test_order_is_that_of_sorted_also_among_equals(tmp_path: Path, number: int):
    rng = random.Random(number)
    lines = [f"{rng.randrange(9)} {place}\n" for place in range(number)]

    def key(line: str) -> str:
        return line.split()[0]

    assert list(sorted_lines(lines, tmp_path, key=key)) == sorted(lines, key=key)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_the_reader_stops(tmp_path: Path):
    lines = sorted_lines((f"{i}\n" for i in range(100)), tmp_path, key=str)
    assert next(lines) == "0\n"
    assert list(tmp_path.iterdir()) != []
    lines.close()  # pyright: ignore[reportAttributeAccessIssue] # a generator
    assert list(tmp_path.iterdir()) == []


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    widest = 0
    real = disk_sort.heapq.merge

    def counting(*runs: Any, key: Any):
        nonlocal widest
        widest = max(widest, len(runs))
        return real(*runs, key=key)

    monkeypatch.setattr(disk_sort.heapq, "merge", counting)
    assert len(list(sorted_lines(["a\n"] * 2000, tmp_path, key=str))) == 2000
    assert 3 <= widest <= 3 * 6
