import os
import pickle
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from allcls_jax.data import files
from allcls_jax.data.cells import CellFile, DiskImage, Part
from allcls_jax.data.files import ZipImage
from allcls_jax.errors import InputError
from tests.data import layouts


def test_images_of_a_folder_and_of_the_same_zip_have_the_same_names(tmp_path: Path):
    content = layouts.class_tree() | layouts.junk()
    folder = files.list_files(layouts.write(tmp_path / "cells", content))
    packed = files.list_files(layouts.pack(tmp_path / "zip" / "cells.zip", content))
    assert sorted(f.path for f in folder.images) == sorted(layouts.class_tree())
    assert sorted(f.path for f in packed.images) == sorted(layouts.class_tree())
    assert folder.problems == packed.problems == []
    assert folder.above[1] == packed.above[1] == "cells"
    for found in (*folder.images, *packed.images):
        assert found.source.read() == content[found.path]


def test_zip_inside_a_folder_counts_as_a_folder_of_its_name(tmp_path: Path):
    layouts.pack(tmp_path / "in" / "fold_0.ZIP", {"all/x.bmp": b"x"})
    (found,) = files.list_files(tmp_path).images
    assert found.path == "in/fold_0/all/x.bmp"
    assert found.stem == "x"
    assert found.source.read() == b"x"


def test_members_with_backslashes_are_in_folders(tmp_path: Path):
    layouts.pack(tmp_path / "a.zip", {"all\\x.bmp": b"x"})
    (found,) = files.list_files(tmp_path / "a.zip").images
    assert found.folders == ("all",)
    assert found.source.read() == b"x"


@pytest.mark.parametrize(
    "name", ["x.bmp", "x.BMP", "x.Jpg", "x.jpeg", "x.PNG", "x.tif", "x.TIFF"]
)
def test_each_suffix_counts_in_any_case(tmp_path: Path, name: str):
    layouts.write(tmp_path, {name: b"x"})
    assert [found.file for found in files.list_files(tmp_path).images] == [name]


@pytest.mark.parametrize("name", ["x.gif", "x.WEBP", "x.dcm"])
def test_pictures_of_other_formats_are_named_not_passed_over(tmp_path: Path, name: str):
    listing = files.list_files(layouts.write(tmp_path, {name: b"x"}))
    assert len(listing.problems) == 1
    assert name in listing.problems[0]


def test_zip_image_survives_pickling_and_names_itself(tmp_path: Path):
    path = layouts.pack(tmp_path / "a.zip", {"all/x.bmp": b"content"})
    image = pickle.loads(pickle.dumps(ZipImage(str(path), "all/x.bmp")))
    assert image.read() == b"content"
    assert image.name == f"{path}!all/x.bmp"


def test_stamp_of_a_zip_image_follows_its_own_content_only(tmp_path: Path):
    path = layouts.pack(tmp_path / "a.zip", {"x.bmp": b"one", "y.bmp": b"1"})
    image = ZipImage(str(path), "x.bmp")
    first = image.stamp()
    assert first == image.stamp()
    layouts.pack(path, {"x.bmp": b"one", "y.bmp": b"changed"})
    assert image.stamp() == first
    layouts.pack(path, {"x.bmp": b"two", "y.bmp": b"1"})
    assert image.stamp() != first
    assert image.read() == b"two"


def test_zip_is_opened_once_by_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    content = {f"{i}.bmp": str(i).encode() for i in range(200)}
    path = layouts.pack(tmp_path / "a.zip", content)
    opened = []
    real = zipfile.ZipFile

    def counting(name: str) -> zipfile.ZipFile:
        opened.append(name)
        return real(name)

    monkeypatch.setattr(zipfile, "ZipFile", counting)
    images = files.list_files(path).images
    for found in images:
        assert found.source.read() == content[found.file]
        found.source.stamp()
    assert opened == [str(path)]
    # A forked process must not move its parent's position in the file.
    monkeypatch.setattr(os, "getpid", lambda: -1)
    images[0].source.read()
    assert opened == [str(path)] * 2


def test_threads_read_one_zip_at_once(tmp_path: Path):
    content = {f"{i}.bmp": os.urandom(20_000) for i in range(60)}
    path = layouts.pack(tmp_path / "a.zip", content)
    images = files.list_files(path).images * 4
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda found: found.source.read(), images))
    assert read == [content[found.file] for found in images]


def test_damaged_member_is_an_os_error(tmp_path: Path):
    path = layouts.pack(tmp_path / "a.zip", {"x.bmp": os.urandom(5000)})
    (found,) = files.list_files(path).images
    data = bytearray(path.read_bytes())
    data[1000:1100] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(OSError, match=r"x\.bmp"):
        found.source.read()
    with pytest.raises(OSError, match=r"y\.bmp"):
        ZipImage(str(path), "y.bmp").stamp()


@pytest.mark.parametrize("size", [0, 10, 150])
def test_cut_off_zip_is_a_problem(tmp_path: Path, size: int):
    path = layouts.pack(tmp_path / "a.zip", {"x.bmp": os.urandom(200)})
    path.write_bytes(path.read_bytes()[:size])
    listing = files.list_files(tmp_path)
    assert listing.images == []
    (problem,) = listing.problems
    assert "a.zip: cannot be read as a zip" in problem


def test_zip_with_a_password_is_a_problem(tmp_path: Path):
    path = layouts.pack(tmp_path / "a.zip", {"x.bmp": b"x"})
    data = bytearray(path.read_bytes())
    flags = data.index(b"PK\x01\x02") + 8
    struct.pack_into("<H", data, flags, 1)
    path.write_bytes(data)
    (problem,) = files.list_files(path).problems
    assert "password" in problem


def test_zip_in_a_zip_is_a_problem(tmp_path: Path):
    inner = layouts.pack(tmp_path / "inner.zip", {"x.bmp": b"x"}).read_bytes()
    listing = files.list_files(layouts.pack(tmp_path / "a.zip", {"fold_0.zip": inner}))
    (problem,) = listing.problems
    assert "fold_0.zip: a zip inside a zip" in problem


def test_folder_without_permission_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    layouts.write(tmp_path, {"a/x.bmp": b"x", "secret/y.bmp": b"y"})
    real = os.scandir

    def refusing(path: str):
        if path.endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    listing = files.list_files(tmp_path)
    assert [found.path for found in listing.images] == ["a/x.bmp"]
    (problem,) = listing.problems
    assert problem.endswith("secret: cannot be listed (Permission denied)")


def test_linked_folder_is_followed_but_not_in_circles(tmp_path: Path):
    layouts.write(tmp_path, {"real/x.bmp": b"x", "root/a/y.bmp": b"y"})
    try:
        (tmp_path / "root" / "b").symlink_to(tmp_path / "real")
        (tmp_path / "root" / "a" / "up").symlink_to(tmp_path / "root")
    except OSError:
        pytest.skip("this platform makes no symbolic links")
    listing = files.list_files(tmp_path / "root")
    assert [found.path for found in listing.images] == ["a/y.bmp", "b/x.bmp"]
    (problem,) = listing.problems
    assert "a link to a folder above it" in problem


@pytest.mark.parametrize(
    ("name", "reason"), [("absent", "does not exist"), ("a.txt", "no folder and no")]
)
def test_path_that_holds_nothing_is_refused(tmp_path: Path, name: str, reason: str):
    layouts.write(tmp_path, {"a.txt": b"text"})
    with pytest.raises(InputError, match=reason):
        files.list_files(tmp_path / name)


def _cell(image_id: str, path: str, archive: str = "") -> CellFile:
    source = ZipImage(archive, path) if archive else DiskImage(path=path)
    return CellFile(image_id=image_id, patient="p", label=1, source=source)


def test_zip_whose_images_are_all_unpacked_is_passed_over():
    cells = [_cell("1", "a/1"), _cell("2", "a/2"), _cell("1", "1", "a.zip")]
    kept, problems = files.without_copies(cells)
    assert [cell.source.name for cell in kept] == ["a/1", "a/2"]
    assert problems == []


def test_zip_of_which_a_part_is_unpacked_is_told():
    cells = [_cell("1", "a/1"), _cell("1", "1", "a.zip"), _cell("2", "2", "a.zip")]
    _, problems = files.without_copies(cells)
    assert problems == ["1 lies in a/1 and a.zip!1"]


def test_ids_that_differ_in_case_only_are_told():
    _, problems = files.without_copies([_cell("UID_h3", "a"), _cell("UID_H3", "b")])
    assert problems == ["UID_H3 lies in a and b"]


def test_order_is_by_part_then_natural_number():
    ids = ["b", "a10", "a9", "a9b", "10", "9"]
    cells = [_cell(name, name) for name in ids]
    cells += [
        CellFile(
            image_id=name, patient="p", label=-1, part=part, source=cells[0].source
        )
        for name, part in (("0", Part.FINAL), ("2", Part.PRELIM), ("1", Part.PRELIM))
    ]
    expected = ["9", "10", "a9", "a9b", "a10", "b", "1", "2", "0"]
    assert [cell.image_id for cell in files.in_order(cells)] == expected
    assert [cell.image_id for cell in files.in_order(cells[::-1])] == expected


def test_walk_without_order_finds_the_same(tmp_path: Path):
    folder = layouts.write(tmp_path, layouts.class_tree() | layouts.junk())
    layouts.pack(tmp_path / "more.zip", {"10.png": b"x", "9.png": b"y", "a.csv": b""})
    in_order = list(files.walk(str(folder)))
    assert set(files.walk(str(folder), ordered=False)) == set(in_order)
    assert len(in_order) == len(layouts.class_tree()) + 3


@pytest.mark.parametrize("name", ["x.png", "x.csv", "x.gif", "x.txt"])
def test_walk_of_one_file_is_that_file_or_why_not(tmp_path: Path, name: str):
    layouts.write(tmp_path, {name: b"x"})
    found = list(files.walk(str(tmp_path / name)))
    if name == "x.txt":
        assert found == []
    elif name == "x.gif":
        assert isinstance(found[0], files.Unlisted)
    else:
        source = DiskImage(path=str(tmp_path / name))
        assert found == [files.Found((), name, source)]


def test_number_of_bytes_is_known_before_they_are_read(tmp_path: Path):
    path = layouts.pack(tmp_path / "a.zip", {"x.png": bytes(500)})
    assert files.num_bytes(ZipImage(str(path), "x.png")) == 500
    size = path.stat().st_size
    assert files.num_bytes(DiskImage(path=str(path))) == size < 500
    with pytest.raises(OSError, match=r"y\.png"):
        files.num_bytes(ZipImage(str(path), "y.png"))
