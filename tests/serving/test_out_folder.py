"""Names of outputs, and what is in the way of them."""

import pytest

from allcls_jax.errors import InputError
from allcls_jax.serving.out_folder import (
    check_foreign,
    check_out,
    pictures_outside,
    safe_stem,
    unique_stem,
)
from allcls_jax.serving.prediction.inputs import write_list


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("cells/fold_0/UID_1_2_3_all.bmp", "UID_1_2_3_all"),
        ("C:\\cells\\a b.bmp", "a_b"),
        ("cells.zip!../../etc/passwd", "passwd"),
        ("../..", "image"),
        ("a/.hidden.png", "hidden"),
        ("a/b:c*?.png", "b_c"),
        ("CON.png", "image_CON"),
        ("COM\N{SUPERSCRIPT ONE}.png", "image_COM1"),
        ("lpt1.x.png", "lpt1_x"),
        ("cells.csv.png", "cells_csv"),
        ("Zelle a\N{COMBINING DIAERESIS} 細胞.tif", "Zelle_ä_細胞"),
        ("", "image"),
    ],
)
def test_names_of_pictures_stay_in_their_folder(name, stem):
    assert safe_stem(name) == stem


def test_a_long_name_is_cut():
    assert len(safe_stem("細" * 300 + ".png").encode()) <= 120
    assert safe_stem("a" * 300 + ".png") == "a" * 120


def test_names_of_outputs_differ_on_every_file_system():
    names = ["x/a.png", "y/A.tif", "z.zip!deep/a b?.png", "...png", "a-2.png"]
    taken = {"image"}
    stems = [unique_stem(name, taken) for name in names]
    assert stems == ["a", "A-2", "a_b", "image-2", "a-2-2"]
    assert taken == {"image", *(stem.casefold() for stem in stems)}


def test_only_names_that_are_taken_are_in_the_way(tmp_path):
    check_foreign(tmp_path, ["a", "b"])
    (tmp_path / "b").symlink_to("nowhere")
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match=r"b \(and 1 more\) is in the way"):
        check_foreign(tmp_path, ["a", "c", "b"])


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        check_out(tmp_path / "out", overwrite=True)


def test_pictures_in_the_folder_to_be_written_are_left_out(tmp_path, capsys):
    """By whatever way they are named; what only begins alike is not in it."""
    out = tmp_path / "out"
    out.mkdir()
    beside = tmp_path / "out.of"
    beside.mkdir()
    for path in (out / "a.png", beside / "b.png", tmp_path / "c.png"):
        path.write_bytes(b"")
    (beside / "link.png").symlink_to(out / "a.png")
    (tmp_path / "cells.csv").write_text("path\nnowhere.png\nout.of/../out/a.png\n")
    paths = [str(tmp_path), str(tmp_path / "cells.csv"), str(tmp_path / "c.png")]
    listed = write_list(paths, tmp_path / "list", block_size=2)
    count, pictures = pictures_outside(listed, out)
    names = [picture.path.rpartition("/")[2] for picture in pictures]
    assert names == ["c.png", "b.png", "nowhere.png", "c.png"]
    assert count == 4
    said = " ".join(capsys.readouterr().out.split())
    assert "3 of 7 images are left out, for they lie in" in said
    assert "2 of 7 images are listed more than once" in said

    listed = write_list([str(out)], tmp_path / "list", block_size=2)
    with pytest.raises(InputError, match="all 1 fields lie in it"):
        pictures_outside(listed, out, unit="fields")
