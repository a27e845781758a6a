import glob
import os
import tracemalloc
from pathlib import Path

import pytest

from allcls_jax.data import files
from allcls_jax.errors import InputError
from allcls_jax.serving.prediction import disk_sort, inputs
from allcls_jax.serving.prediction.inputs import Picture, PictureList, write_list
from allcls_jax.serving.prediction.patterns import matches
from tests.data import layouts
from tests.privileges import permissions_hold


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, so that names are as a user would write them."""
    monkeypatch.chdir(tmp_path)
    content = {"a/10.png": b"ten", "a/9.png": b"nine", "a/b/UID_h3_1_2_hem.bmp": b"h"}
    layouts.write(tmp_path / "cells", content | layouts.junk())
    layouts.pack(tmp_path / "more.zip", {"in/UID_11_2_1_all.bmp": b"a", "x.jpg": b"x"})
    return tmp_path


def listed(*paths: str, block_size: int = 3) -> PictureList:
    Path(".scratch").mkdir(exist_ok=True)
    return write_list(paths, Path(".scratch/list"), block_size=block_size)


def pictures(found: PictureList) -> list[Picture]:
    return [one for block in range(found.num_blocks) for one in found.block(block)]


def names(*paths: str) -> list[str]:
    return [picture.name for picture in pictures(listed(*paths))]


FOLDER = ["cells/a/9.png", "cells/a/10.png", "cells/a/b/UID_h3_1_2_hem.bmp"]
ZIP = ["more.zip!in/UID_11_2_1_all.bmp", "more.zip!x.jpg"]


def test_order_is_by_path_then_natural_by_name(cells: Path):
    assert names("cells", "more.zip") == FOLDER + ZIP
    assert names("more.zip", "cells") == ZIP + FOLDER
    assert names("cells/a/10.png", "cells/a/9.png") == FOLDER[1::-1]


def test_order_is_not_the_file_systems(cells: Path, monkeypatch: pytest.MonkeyPatch):
    expected = listed("cells", "cells/a/*.png").sha256

    class Backwards:
        def __init__(self, path: str):
            with real(path) as entries:
                self._entries = sorted(entries, key=lambda e: e.name, reverse=True)

        def __enter__(self):
            return iter(self._entries)

        def __exit__(self, *exception: object) -> None:
            pass

    real = os.scandir
    monkeypatch.setattr(os, "scandir", Backwards)
    assert listed("cells", "cells/a/*.png").sha256 == expected


def test_bytes_and_patients_are_those_of_the_files(cells: Path):
    found = pictures(listed("cells", "more.zip"))
    assert [one.read() for one in found] == [b"nine", b"ten", b"h", b"a", b"x"]
    assert [one.patient for one in found] == [None, None, "H3", "11", None]


@pytest.mark.parametrize("block_size", [1, 2, 4, 5, 6])
def test_blocks_divide_the_list(cells: Path, block_size: int):
    found = listed("cells", "more.zip", block_size=block_size)
    blocks = [found.block(number) for number in range(found.num_blocks)]
    assert [one.name for block in blocks for one in block] == FOLDER + ZIP
    assert [len(block) for block in blocks] == [
        found.size(number) for number in range(found.num_blocks)
    ]
    assert all(len(block) == block_size for block in blocks[:-1])


@pytest.mark.parametrize(
    "pattern",
    ["*", "*/*", "**/*.png", "**/b/*", "cells/*/1?.png", "cells/a/[!1]*", "**", "*.no"],
)
def test_patterns_match_what_python_matches(cells: Path, pattern: str):
    expected = {
        path
        for path in glob.glob(pattern, recursive=True)  # noqa: PTH207
        if path and not any(map(files.is_junk, Path(path).parts))
    }
    assert set(matches(pattern)) == expected
    absolute = str(cells / pattern)
    assert set(matches(absolute)) - {str(cells)} == {
        str(cells / path) for path in expected
    }


def test_pattern_lists_each_picture_once_and_walks_folders(cells: Path):
    assert names("**") == sorted(FOLDER + ZIP, key=files.natural)
    assert names("c*") == FOLDER
    assert names("cells/**/*.png") == FOLDER[:2]


def test_name_that_looks_like_a_pattern_is_a_name_if_it_is_there(cells: Path):
    layouts.write(cells, {"[1].png": b"x", "1.png": b"y"})
    assert names("[1].png") == ["[1].png"]


TABLE = "Path,Patient,other\na/9.png,p1,1\na\\10.png,,2\na/b/UID_h3_1_2_hem.bmp,,3\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_keeps_its_order_and_knows_patients(cells: Path, encoding: str):
    Path("cells/list.csv").write_text(TABLE, encoding=encoding)
    found = pictures(listed("cells/list.csv"))
    assert [one.name for one in found] == [
        "a/9.png",
        "a\\10.png",
        "a/b/UID_h3_1_2_hem.bmp",
    ]
    assert [one.read() for one in found] == [b"nine", b"ten", b"h"]
    assert [one.patient for one in found] == ["p1", None, "H3"]


def test_csv_may_name_absolute_paths_and_a_pattern_may_name_csvs(cells: Path):
    for number in (10, 9):
        path = cells / "cells" / "a" / f"{number}.png"
        Path(f"list{number}.csv").write_text(f"path\n{path}\n")
    found = pictures(listed("list*.csv"))
    assert [one.read() for one in found] == [b"nine", b"ten"]


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        (b"file,patient\nx,1\n", ["columns file, patient and needs path"]),
        (b"", ["columns (none) and needs path"]),
        (b"path,patient\na\n,p\nb,p\n", ["row 2: 1 cells under 2", "row 3: the path"]),
        (b"path\n\xff\n", ["cannot be read as a csv in UTF-8"]),
        (b"path,n\n" + b"a\n" * 25, ["row 21:", "5 more rows"]),
    ],
)
def test_wrong_csv_is_refused_with_its_rows(cells: Path, text: bytes, reasons: list):
    Path("list.csv").write_bytes(text)
    with pytest.raises(InputError) as error:
        listed("list.csv")
    for reason in ["list.csv", *reasons]:
        assert reason in str(error.value)


def test_csv_row_that_cannot_be_read_is_left_to_its_own_error(cells: Path):
    Path("list.csv").write_bytes(b"path\ngone.png\nze\0ro.png\n.\n")
    for picture, reason in zip(
        pictures(listed("list.csv")),
        ["No such file", "null byte", "Is a directory"],
        strict=True,
    ):
        with pytest.raises(InputError, match=f"cannot be read .*{reason}"):
            picture.read()


def test_every_path_that_cannot_be_used_is_named(cells: Path):
    layouts.write(cells, {"notes.txt": b"text", "x.gif": b"gif"})
    with pytest.raises(InputError) as error:
        listed("gone", "notes.txt", "cells", "x.gif")
    for line in ("gone: does not exist", "notes.txt: is none", "x.gif: is none"):
        assert line in str(error.value)
    assert "cells: " not in str(error.value)


@pytest.mark.parametrize("path", ["*.tif", "*.csv", "cells/*.db"])
def test_a_pattern_that_matches_nothing_is_told_beside_others(cells: Path, path: str):
    with pytest.raises(InputError) as error:
        listed("cells", path)
    assert f"{path}: nothing matches it" in str(error.value)
    assert "Give images" in str(error.value)


@pytest.mark.parametrize("path", ["empty", "list.csv"])
def test_no_images_says_what_was_looked_for(cells: Path, path: str):
    Path("empty").mkdir()
    Path("list.csv").write_text("path\n")
    with pytest.raises(InputError, match=r"no images; looked for .*BMP.*csv"):
        listed(path)


def test_what_cannot_be_listed_is_a_line_with_the_reason(cells: Path, monkeypatch):
    layouts.write(
        cells / "cells", {"x.gif": b"x", "b.zip": b"no zip", "shut/a.png": b""}
    )
    real = os.scandir

    def refusing(path: str):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    for path in ("cells", "cells/*"):
        found = {one.name: one.problem for one in pictures(listed(path))}
        assert "zip file" in str(found.pop("cells/b.zip"))
        assert "convert it to PNG" in str(found.pop("cells/x.gif"))
        assert "Permission denied" in str(found.pop("cells/shut"))
        assert list(found) == FOLDER
    shut = {one.name: one.problem for one in pictures(listed("cells/shut/*.png"))}
    assert "Permission denied" in str(shut["cells/shut"])


def test_name_that_is_not_text_is_shown_and_read(cells: Path):
    try:
        Path(os.fsdecode(b"cells/a/\xff.png")).write_bytes(b"odd")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (found,) = [one for one in pictures(listed("cells")) if "\\" in one.name]
    assert found.name == r"cells/a/\udcff.png"
    assert found.read() == b"odd"


def test_picture_without_permission_is_told(cells: Path):
    path = Path("cells/a/9.png")
    path.chmod(0)
    with (
        permissions_hold(),
        pytest.raises(InputError, match=r"cannot be read \(Permission denied"),
    ):
        pictures(listed(str(path)))[0].read()


def test_file_larger_than_any_picture_is_not_read(cells: Path, monkeypatch):
    os.truncate("cells/a/9.png", inputs.MAX_BYTES + 1)  # takes no space
    with pytest.raises(InputError, match=r"has 800,000,001 bytes.*cut out"):
        pictures(listed("cells/a/9.png"))[0].read()
    monkeypatch.setattr(inputs, "MAX_BYTES", 10)
    layouts.pack(Path("bomb.zip"), {"x.png": bytes(11)})
    with pytest.raises(InputError, match="has 11 bytes"):
        pictures(listed("bomb.zip"))[0].read()


def test_pictures_listed_again_are_counted(cells: Path):
    Path("list.csv").write_text("path\ncells/a/9.png\ncells/./a/9.png\nmore.png\n")
    assert listed("cells").repeated == 0
    assert listed("cells", "cells/a/*.png", "more.zip").repeated == 2
    assert listed("list.csv", "cells").repeated == 2


def test_checksum_follows_names_sizes_times_and_order(cells: Path):
    first = listed("cells", "more.zip").sha256
    assert listed("cells", "more.zip").sha256 == first
    assert listed("more.zip", "cells").sha256 != first
    os.utime("cells/a/9.png", (1, 1))
    second = listed("cells", "more.zip").sha256
    assert second != first
    layouts.pack(Path("more.zip"), {"in/UID_11_2_1_all.bmp": b"b", "x.jpg": b"x"})
    assert listed("cells", "more.zip").sha256 not in (first, second)


def test_ten_times_the_pictures_take_no_more_memory(cells: Path, monkeypatch):
    for module, name, value in (
        *((disk_sort, "_LINES", 20), (disk_sort, "_RUNS", 3)),
        *((inputs, "_STAMPS", 4), (inputs, "_THREADS", 2)),
    ):
        monkeypatch.setattr(module, name, value)
    peaks = []
    # What is made once, or by another thread meanwhile, does not count.
    for number in (300, 300, 3000, 3000):
        rows = "".join(f"cells/a/{9 + i % 2}.png,p{i % 7}\n" for i in range(number))
        Path("list.csv").write_text(f"path,patient\n{rows}")
        folder = Path(f"many{number}")
        if not folder.exists():
            layouts.write(folder, {f"{i}.png": b"" for i in range(number // 4)})
        del rows
        tracemalloc.start()
        found = listed("list.csv", str(folder), block_size=256)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.count == number + number // 4
    # 3375 pictures more, held with their names, would be over 1 MB.
    assert min(peaks[2:]) < min(peaks[:2]) + 300_000, peaks
