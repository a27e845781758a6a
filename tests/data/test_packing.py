"""Packs: what is stored comes back, whole or not at all, and is not made twice."""

import contextlib
import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from allcls_jax.config import DataConfig, DataSource, OnBadImage, SyntheticConfig
from allcls_jax.data import (
    packing,
    placing,
    prepare,
    records,
    synthetic,
    transforms,
)
from allcls_jax.data.cells import (
    CellFile,
    DiskImage,
    Part,
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
        image, area = transforms.prepare(
            cell.source.read(),
            name=cell.source.name,
            max_side=None,
            crop=None,
            size=24,
        )
        assert np.array_equal(packed[row], image)
        assert packed.table.area[row] == area
    with pytest.raises(IndexError):
        packed[5]


def test_a_pack_is_a_data_set_that_tfds_reads_by_itself(tmp_path):
    packed = pack(write_cells(tmp_path / "in"), tmp_path / "out")
    folder = tmp_path / "out" / "cells" / "1.0.0"
    builder: Any = tfds.builder_from_directory(str(folder))
    assert builder.info.splits["cells"].num_examples == 5
    records = builder.as_data_source("cells")
    for row in range(5):
        record = records[row]
        assert np.array_equal(record["image"], packed[row])
        for name in ("image_id", "patient", "part", "sha256"):
            assert record[name].decode() == getattr(packed.table, name)[row]
        for name in ("label", "fold", "area"):
            assert record[name] == getattr(packed.table, name)[row]


def test_the_fingerprint_is_of_content_not_of_order(tmp_path):
    cells = write_cells(tmp_path / "in")
    table = pack(cells, tmp_path / "out").table
    assert table.take([4, 2, 0, 1, 3]).fingerprint() == table.fingerprint()
    assert table.take([0, 1, 2, 3]).fingerprint() != table.fingerprint()


def names(folder: Path) -> list[str]:
    """What lies in a folder, but for the lock that stays."""
    return sorted(p.name for p in folder.iterdir() if p.name != ".out.lock")


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
    assert names(tmp_path) == ["in", "out"]


def test_all_bad_images_are_named_and_nothing_is_left(tmp_path):
    cells, out = write_cells(tmp_path / "in"), tmp_path / "out"
    (tmp_path / "in" / "1.png").write_bytes(b"")
    (tmp_path / "in" / "3.png").write_bytes(b"not an image")
    (tmp_path / "in" / "4.png").unlink()
    with pytest.raises(InputError, match="3 problems") as error:
        pack(cells, out)
    for name in ("1.png", "3.png", "4.png", "on_bad_image=skip"):
        assert name in str(error.value)
    assert names(tmp_path) == ["in"]


def test_bad_images_are_left_out_on_demand_and_listed(tmp_path):
    cells, out = write_cells(tmp_path / "in"), tmp_path / "out"
    (tmp_path / "in" / "1.png").write_bytes(b"")
    packed = pack(cells, out, on_bad=OnBadImage.SKIP)
    assert packed.table.image_id.tolist() == ["cell0", "cell2", "cell3", "cell4"]
    assert packed[1].max() == 100
    assert "1.png" in (out / "skipped.txt").read_text()
    assert len(packed.skipped) == 1
    assert packed.skipped[0] == (out / "skipped.txt").read_text().rstrip("\n")


def test_a_pack_without_bad_images_skipped_none(tmp_path):
    cells = write_cells(tmp_path / "in")
    assert pack(cells, tmp_path / "out", on_bad=OnBadImage.SKIP).skipped == ()


@dataclasses.dataclass(frozen=True)
class LockedImage:
    """An image whose reading a flag forbids, as a lost permission would."""

    path: Path
    flag: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> bytes:
        if self.flag.exists():
            raise PermissionError(13, "Permission denied", self.name)
        return self.path.read_bytes()

    def stamp(self) -> str:
        return DiskImage(path=str(self.path)).stamp()


def test_an_image_that_can_be_read_again_is_packed_though_nothing_else_changed(
    tmp_path,
):
    cells, out = write_cells(tmp_path / "in"), tmp_path / "out"
    flag = tmp_path / "in" / "locked"
    flag.touch()
    source = LockedImage(tmp_path / "in" / "1.png", flag)
    cells[1] = dataclasses.replace(cells[1], source=source)
    first = pack(cells, out, on_bad=OnBadImage.SKIP)
    assert len(first) == 4
    before = inode(out)
    # As long as it cannot be read, a running reader's pack stays where it is.
    assert pack(cells, out, on_bad=OnBadImage.SKIP).stamp == first.stamp
    assert inode(out) == before
    flag.unlink()
    copied = pickle.dumps(first)
    second = pack(cells, out, on_bad=OnBadImage.SKIP)
    assert second.table.image_id.tolist() == [cell.image_id for cell in cells]
    assert second[1].max() == 80
    assert second.skipped == ()
    assert second.stamp != first.stamp
    with pytest.raises(InputError, match="packed anew while it was in use"):
        pickle.loads(copied)


def test_skipped_images_are_told_at_every_opening(tmp_path, capsys):
    source = class_folders(tmp_path / "in")
    (source / "ALL" / "1" / "0.png").write_bytes(b"broken")
    config = DataConfig(dir=str(source), on_bad_image=OnBadImage.SKIP)
    for _ in range(2):
        packed = prepare.open_cells(config, pack_size=32, cache_dir=tmp_path / "cache")
        shown = capsys.readouterr().out
        assert shown.count("1 images could not be read") == 1
        assert str(packed.directory / "skipped.txt") in shown
    out = str(tmp_path / "out")
    prepare.main([str(source), "--out", out, "--size=32", "--on-bad-image=skip"])
    assert capsys.readouterr().out.count("1 images could not be read") == 1
    config = DataConfig(dir=out, image_size=32)
    prepare.open_cells(config, pack_size=32, cache_dir=tmp_path / "cache")
    assert f"{out}/skipped.txt" in capsys.readouterr().out


PACK_TWICE = """
import sys
import time
from pathlib import Path
from allcls_jax.config import DataSource, OnBadImage, SyntheticConfig
from allcls_jax.data import packing, synthetic
cells = synthetic.cells(SyntheticConfig(num_images=14, num_patients=12))
write = packing._write
def slow(*arguments, **options):
    print("packing")
    time.sleep(0.5)  # so that the other one comes meanwhile
    return write(*arguments, **options)
packing._write = slow
print("ready", flush=True)
sys.stdin.readline()
packed = packing.pack(
    cells, Path(sys.argv[1]), source=DataSource.SYNTHETIC, size=24, crop=None,
    on_bad_image=OnBadImage.ERROR,
)
assert len([packed[row] for row in range(14)]) == 14
print((packed.directory / "pack.json").stat().st_ino)
"""


def test_two_processes_pack_one_folder_once(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PACK_TWICE, str(tmp_path / "out")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    shown = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], shown
    assert len({out.splitlines()[-1] for out, _ in shown}) == 1
    assert sum(out.splitlines().count("packing") for out, _ in shown) == 1
    assert names(tmp_path) == ["out"]


def test_what_another_process_packed_meanwhile_is_used(tmp_path, monkeypatch):
    cells, out = write_cells(tmp_path / "in"), tmp_path / "out"
    exclusively = placing.exclusively
    theirs = []

    @contextlib.contextmanager
    def after_another(folder: Path):
        if not theirs:
            theirs.append(0)
            pack(cells, out)
            theirs.append(inode(out))
        with exclusively(folder) as replacing:
            yield replacing

    monkeypatch.setattr(placing, "exclusively", after_another)
    pack(cells, out)
    assert inode(out) == theirs[1]


def test_what_a_killed_process_left_is_removed(tmp_path):
    cells, out = write_cells(tmp_path / "in"), tmp_path / "out"
    # Killed while packing, and between moving the old pack away and the new one in.
    (tmp_path / ".out.part-a1b2c3d4" / "new").mkdir(parents=True)
    pack(cells, tmp_path / ".out.part-_x" / "old")
    others = [".out.part-x.part-abcd1234", ".outer.part-abcd1234", ".out.thesis"]
    for other in others:
        (tmp_path / other).mkdir()
    assert len(pack(cells, out)) == 5
    assert names(tmp_path) == sorted([*others, "in", "out"])


def test_a_pack_is_as_readable_as_any_new_folder(tmp_path):
    pack(write_cells(tmp_path / "in"), tmp_path / "out")
    (tmp_path / "new").mkdir()
    ours, usual = (tmp_path / name for name in ("out", "new"))
    assert ours.stat().st_mode == usual.stat().st_mode


@pytest.mark.parametrize("damage", ["no pack.json", "format", "cells.csv", "a file"])
def test_what_is_damaged_in_the_cache_is_packed_anew(tmp_path, damage):
    config = DataConfig(synthetic=CONFIG)
    packed = prepare.open_cells(config, pack_size=32, cache_dir=tmp_path)
    out, table, image = packed.directory, packed.table.fingerprint(), packed[3]
    if damage == "no pack.json":
        (out / "pack.json").unlink()
    elif damage == "format":
        (out / "pack.json").write_text('{"format": 0}')
    elif damage == "cells.csv":
        (out / "cells.csv").write_text(table.replace(",1,", ",0,"))
    else:
        shutil.rmtree(out)
        out.write_text("")
    again = prepare.open_cells(config, pack_size=32, cache_dir=tmp_path)
    assert again.directory == out
    assert again.table.fingerprint() == table
    assert np.array_equal(again[3], image)


@pytest.mark.parametrize("kind", ["out below a file", "cache is a file", "no room"])
def test_a_folder_that_cannot_be_written_is_told(tmp_path, capsys, monkeypatch, kind):
    source = class_folders(tmp_path / "in")
    file = tmp_path / "file"
    file.write_text("mine")
    if kind == "cache is a file":
        with pytest.raises(InputError, match=r"file.*cannot be written.*cache_dir"):
            prepare.open_cells(
                DataConfig(dir=str(source)), pack_size=32, cache_dir=file
            )
    else:
        out = file / "x" if kind == "out below a file" else tmp_path / "out"
        if kind == "no room":

            def full(*_, **__):
                raise RuntimeError("write() failed: No space left on device; writing x")

            monkeypatch.setattr(records, "write", full)
        assert prepare.main([str(source), "--out", str(out), "--size=32"]) == 2
        shown = capsys.readouterr().err
        assert f"{out}: the pack cannot be written" in shown
        assert "--out" in shown
    assert file.read_text() == "mine"
    assert names(tmp_path) == ["file", "in"]


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

    replace = Path.replace

    def fail(path: Path, target: Path):
        if target == out and path.name == "new":
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InputError, match=r"out: .*cannot be written.*No space"):
        pack(cells, out, size=16)
    assert inode(out) == before
    assert names(tmp_path) == ["in", "out"]


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


@pytest.mark.parametrize("damage", ["cells.csv", "a label", "array_record"])
def test_a_damaged_pack_is_found_when_it_is_opened(tmp_path, damage):
    cells, out = write_cells(tmp_path / "in"), tmp_path / "out"
    pack(cells, out)
    (path,) = out.rglob(f"*{'cells.csv' if damage == 'a label' else damage}*")
    if damage == "a label":
        path.write_text(path.read_text().replace(",P0,0,", ",P0,1,", 1))
    elif damage == "cells.csv":
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
