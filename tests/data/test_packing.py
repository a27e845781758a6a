"""Packs: what is stored comes back, whole or not at all, and is not made twice."""

import dataclasses
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from allcls_jax.config import DataConfig, DataSource, OnBadImage, SyntheticConfig
from allcls_jax.data import packing, prepare, synthetic, transforms
from allcls_jax.data.cells import (
    CellFile,
    DiskImage,
    Part,
    table_from_csv,
    table_from_rows,
)
from allcls_jax.errors import InputError

CONFIG = SyntheticConfig(num_images=14, num_patients=12)


def write_cells(folder: Path, count: int = 5) -> list[CellFile]:
    """PNG files of different content, some in every part."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = []
    for i in range(count):
        image = np.full((40, 40, 3), 20 * i + 60, np.uint8)
        path = folder / f"{i}.png"
        path.write_bytes(transforms.encode_png(image))
        part = (Part.TRAIN, Part.PRELIM)[i * 2 // count]
        cells.append(
            CellFile(
                image_id=f"cell{i}",
                patient=f"P{i % 3}",
                label=i % 2,
                part=part,
                fold=i % 3 if part is Part.TRAIN else -1,
                source=DiskImage(path=str(path)),
            )
        )
    return cells


def pack(cells, out, *, size=24, crop=None, on_bad=OnBadImage.ERROR):
    return packing.pack(
        cells,
        out,
        source=DataSource.FOLDER,
        size=size,
        crop=crop,
        on_bad_image=on_bad,
    )


def test_records_and_images_come_back(tmp_path):
    cells = write_cells(tmp_path / "in")
    packed = pack(cells, tmp_path / "out")
    assert len(packed) == 5
    assert packed.table.image_id.tolist() == [cell.image_id for cell in cells]
    assert packed.table.patient.tolist() == ["P0", "P1", "P2", "P0", "P1"]
    assert packed.table.label.tolist() == [0, 1, 0, 1, 0]
    assert packed.table.part.tolist() == ["train"] * 3 + ["prelim"] * 2
    assert packed.table.fold.tolist() == [0, 1, 2, -1, -1]
    for row, cell in enumerate(cells):
        image = transforms.prepare(
            cell.source.read(),
            name=cell.source.name,
            max_side=None,
            crop=None,
            size=24,
        )
        assert np.array_equal(packed[row], image)
    with pytest.raises(IndexError):
        packed[5]


def test_the_table_survives_its_file_form(tmp_path):
    table = pack(write_cells(tmp_path / "in"), tmp_path / "out").table
    again = table_from_csv(table.to_csv())
    for one, other in zip(table.columns(), again.columns(), strict=True):
        assert one.dtype.kind == other.dtype.kind
        assert np.array_equal(one, other)
    assert len(table_from_rows([])) == 0


def test_the_fingerprint_is_of_content_not_of_order(tmp_path):
    cells = write_cells(tmp_path / "in")
    table = pack(cells, tmp_path / "out").table
    assert table.take([4, 2, 0, 1, 3]).fingerprint() == table.fingerprint()
    assert table.take([0, 1, 2, 3]).fingerprint() != table.fingerprint()


def inode(folder: Path) -> int:
    return (folder / "pack.json").stat().st_ino


def test_an_unchanged_source_is_not_packed_again(tmp_path):
    cells, out = write_cells(tmp_path / "in"), tmp_path / "out"
    pack(cells, out)
    before = inode(out)
    pack(cells, out)
    assert inode(out) == before


@pytest.mark.parametrize("change", ["content", "mtime", "label", "size", "crop"])
def test_a_changed_source_is_packed_anew(tmp_path, change):
    cells, out = write_cells(tmp_path / "in"), tmp_path / "out"
    pack(cells, out)
    before = inode(out)
    first = tmp_path / "in" / "0.png"
    size, crop = 24, None
    if change == "content":
        first.write_bytes(transforms.encode_png(np.full((50, 50, 3), 99, np.uint8)))
    elif change == "mtime":
        os.utime(first, ns=(1, 1))
    elif change == "label":
        cells[0] = dataclasses.replace(cells[0], label=1)
    elif change == "size":
        size = 20
    else:
        crop = 20
    packed = pack(cells, out, size=size, crop=crop)
    assert inode(out) != before
    if change == "content":
        assert packed[0].max() == 99
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == []


def test_all_bad_images_are_named_and_nothing_is_left(tmp_path):
    cells, out = write_cells(tmp_path / "in"), tmp_path / "out"
    (tmp_path / "in" / "1.png").write_bytes(b"")
    (tmp_path / "in" / "3.png").write_bytes(b"not an image")
    (tmp_path / "in" / "4.png").unlink()
    with pytest.raises(InputError, match="3 problems") as error:
        pack(cells, out)
    for name in ("1.png", "3.png", "4.png", "on_bad_image=skip"):
        assert name in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_bad_images_are_left_out_on_demand_and_listed(tmp_path):
    cells, out = write_cells(tmp_path / "in"), tmp_path / "out"
    (tmp_path / "in" / "1.png").write_bytes(b"")
    packed = pack(cells, out, on_bad=OnBadImage.SKIP)
    assert packed.table.image_id.tolist() == ["cell0", "cell2", "cell3", "cell4"]
    assert packed[1].max() == 100
    assert "1.png" in (out / "skipped.txt").read_text()


@pytest.mark.parametrize("on_bad", OnBadImage)
def test_only_bad_images_are_an_error_in_any_case(tmp_path, on_bad):
    cells = write_cells(tmp_path / "in", 2)
    for i in range(2):
        (tmp_path / "in" / f"{i}.png").write_bytes(b"")
    with pytest.raises(InputError, match="2 problems"):
        pack(cells, tmp_path / "out", on_bad=on_bad)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="no pack"):
        pack(write_cells(tmp_path / "in"), out)
    assert (out / "thesis.txt").read_text() == "mine"


def test_a_pack_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    cells, out = write_cells(tmp_path / "in"), tmp_path / "out"
    pack(cells, out)
    before = inode(out)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "_replace", fail)
    with pytest.raises(OSError, match="No space"):
        pack(cells, out, size=16)
    assert inode(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_synthetic_cells_are_packed_once_in_the_cache(tmp_path):
    config = DataConfig(synthetic=CONFIG)
    packed = prepare.open_cells(config, pack_size=32, cache_dir=tmp_path)
    again = prepare.open_cells(config, pack_size=32, cache_dir=tmp_path)
    assert packed.directory == again.directory
    assert packed.directory.parent == tmp_path / "cells"
    assert packed.source is DataSource.SYNTHETIC
    drawn = synthetic.cells(CONFIG)
    assert packed.table.patient.tolist() == [cell.patient for cell in drawn]
    other = DataConfig(synthetic=dataclasses.replace(CONFIG, seed=1))
    moved = prepare.open_cells(other, pack_size=32, cache_dir=tmp_path)
    assert moved.directory != packed.directory


def class_folders(root: Path) -> Path:
    for name in ("ALL/1", "ALL/2", "HEM/3"):
        write_cells(root / name, 2)
    return root


def test_prepare_data_writes_a_pack_that_a_run_opens(tmp_path, capsys):
    source, out = class_folders(tmp_path / "in"), tmp_path / "out"
    assert prepare.main([str(source), "--out", str(out), "--size", "32"]) == 0
    shown = capsys.readouterr().out
    assert "ALL" in shown
    assert "HEM" in shown
    config = DataConfig(dir=str(out), image_size=32)
    packed = prepare.open_cells(config, pack_size=32, cache_dir=tmp_path / "cache")
    assert len(packed) == 6
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image_size": 64}, "data.pack_size = 64, the pack's is 32"),
        ({"pack_size": 48}, "data.pack_size = 48"),
        ({"crop": 20}, "data.crop = 20, the pack's is None"),
        ({"source": DataSource.CNMC}, "data.source = cnmc"),
    ],
)
def test_a_pack_that_does_not_fit_is_refused(tmp_path, options, named):
    source, out = class_folders(tmp_path / "in"), tmp_path / "out"
    prepare.main([str(source), "--out", str(out), "--size", "32"])
    config = DataConfig(**({"dir": str(out), "image_size": 32} | options))
    with pytest.raises(InputError, match="does not fit") as error:
        prepare.open_cells(config, pack_size=32, cache_dir=tmp_path)
    assert named in str(error.value)


def test_prepare_data_answers_mistakes_with_exit_code_2(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert prepare.main([str(tmp_path / "nowhere"), "--out", out]) == 2
    assert "nowhere" in capsys.readouterr().err
    source = class_folders(tmp_path / "in")
    assert prepare.main([str(source), "--out", out, "--size", "0"]) == 2
    assert "--size = 0" in capsys.readouterr().err
    (source / "ALL" / "1" / "0.png").write_bytes(b"broken")
    assert prepare.main([str(source), "--out", out]) == 2
    assert "0.png" in capsys.readouterr().err
    assert not Path(out).exists()
    assert prepare.main([str(source), "--out", out, "--on-bad-image=skip"]) == 0
    assert len(packing.PackedCells(Path(out))) == 5


def test_a_pack_of_another_version_is_no_pack(tmp_path):
    cells, out = write_cells(tmp_path / "in"), tmp_path / "out"
    pack(cells, out)
    manifest = json.loads((out / "pack.json").read_text())
    (out / "pack.json").write_text(json.dumps(manifest | {"format": 0}))
    with pytest.raises(InputError, match="not a pack of this version"):
        packing.PackedCells(out)


@pytest.mark.parametrize("damage", ["cells.csv", "array_record"])
def test_a_damaged_pack_is_found_when_it_is_opened(tmp_path, damage):
    cells, out = write_cells(tmp_path / "in"), tmp_path / "out"
    pack(cells, out)
    (path,) = out.rglob(f"*{damage}*")
    if damage == "cells.csv":
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"damaged.*remove"):
        packing.PackedCells(out)


def test_a_pack_goes_to_another_process_by_its_place(tmp_path):
    packed = pack(write_cells(tmp_path / "in"), tmp_path / "out")
    copied = pickle.dumps(packed)
    assert len(copied) < 1000
    assert np.array_equal(pickle.loads(copied)[3], packed[3])
