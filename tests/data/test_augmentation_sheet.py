"""The sheet of variations: what it shows, and what a mistake says."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allcls_jax.config import AugmentConfig
from allcls_jax.data import augmentation_sheet, contact_sheet
from allcls_jax.data.variations import VARIATIONS, tell
from tests.data import layouts, pictures

SMALL = """
from allcls_jax.config import AugmentConfig, Config, DataConfig
def get_config():
    return Config(
        data=DataConfig(image_size=32), augment=AugmentConfig(rotation=90.0, mask=0.5)
    )
"""


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A configuration of small images."""
    file = tmp_path / "small.py"
    file.write_text(SMALL)
    return str(file)


def test_each_field_of_the_configuration_is_named_once():
    fields = [field.name for field in dataclasses.fields(AugmentConfig)]
    assert sorted(VARIATIONS) == sorted(fields)
    assert list(
        tell({"rotation": 7.5, "stain": 0.125, "blur": 0, "dihedral": True})
    ) == [
        "each showing one of 8 flips and quarter turns",
        "rotation by up to 7.5 degrees",
        "haematoxylin and eosin by up to 12.5%",
    ]


def test_a_row_shows_one_variation_and_the_last_all():
    images = np.stack([pictures.cell_image(32, seed=seed) for seed in (1, 2)])
    config = AugmentConfig(rotation=90.0, brightness=0.5)
    rows = list(augmentation_sheet.vary(images, config, seed=0))
    assert [row.title for row in rows] == ["original", *VARIATIONS, "all together"]
    assert [row.title for row in rows if not row.faint] == [
        "original",
        "rotation",
        "brightness",
        "all together",
    ]
    shown = {row.title: np.stack(row.pictures).astype(int) for row in rows}
    np.testing.assert_array_equal(shown["original"], images)
    # Turned and then made brighter by the same numbers: but for rounding.
    factor = shown["brightness"].sum((1, 2, 3)) / images.sum((1, 2, 3))
    expected = np.minimum(shown["rotation"] * factor[:, None, None, None], 255)
    np.testing.assert_allclose(shown["all together"], expected, atol=2)
    for name in VARIATIONS:
        assert (shown[name] != images).any(), name


def test_without_variations_the_last_row_says_so():
    images = pictures.cell_image(32)[None]
    *_, last = augmentation_sheet.vary(images, AugmentConfig(), seed=0)
    assert last.text == "the configuration varies nothing"
    np.testing.assert_array_equal(last.pictures[0], images[0])


@pytest.mark.parametrize("source", ["synthetic", "folder", "image"])
def test_the_sheet_has_its_rows_and_columns(
    source: str, small: str, tmp_path: Path, capsys, monkeypatch
):
    rows: list[contact_sheet.GridRow] = []
    real = contact_sheet.draw_grid

    def draw(title, notes, captions, given):
        rows.extend(given)
        return real(title, notes, captions, given)

    monkeypatch.setattr(contact_sheet, "draw_grid", draw)
    png = pictures.encode(pictures.cell_image(64), "PNG")
    layouts.write(tmp_path / "cells", {"a/1.png": png, "2.png": png, "3.txt": b"no"})
    path = {
        "synthetic": [],
        "folder": [str(tmp_path / "cells")],
        "image": [str(tmp_path / "cells" / "2.png")],
    }[source]
    out = tmp_path / "sheet.png"
    flags = ["--config.augment.rotation=0", "--config.augment.dihedral=true"]
    assert (
        augmentation_sheet.main(
            [*path, "--config", small, "--out", str(out), "--draws=2", *flags]
        )
        == 0
    )
    columns = {"synthetic": 6, "folder": 4, "image": 2}[source]
    assert {len(row.pictures) for row in rows} == {columns}
    assert {picture.shape for row in rows for picture in row.pictures} == {(32, 32, 3)}
    titles = [row.title for row in rows if not row.faint]
    assert titles == ["original", "dihedral", "mask", "all together"]
    assert (
        f"{len(VARIATIONS) + 2} rows of {columns} pictures" in capsys.readouterr().out
    )
    with Image.open(out) as picture:
        sheet = np.asarray(picture.convert("RGB"))
    # Beside the labels, runs of rows with a picture's black in them: one for each row.
    black = (sheet[:, 260:400] == 0).all(-1).any(1)
    assert np.count_nonzero(np.diff(black.astype(int)) == 1) == len(rows)
    assert not [path for path in out.parent.iterdir() if out.name in path.name[1:]]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--out", "a.jpg"], "must end in .png"),
        (["--out", "no/a.png"], "its folder does not exist"),
        (["none", "--out", "a.png"], "none: does not exist"),
        (["empty", "--out", "a.png"], "holds no image"),
        (["--out", "a.png", "--cells=0"], "must be at least 1"),
        (["--out", "a.png", "--config=vgg20"], "there is no file"),
        (["--out", "a.png", "--config.augment.blur=x"], "invalid float"),
        (["--out", "a.png", "--config.augment.dihedral=2"], "must be true or false"),
        (["--out", "a.png", "--config.augment.colour=1"], "unrecognized"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    words: list[str], told: str, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    try:
        code = augmentation_sheet.main(words)
    except SystemExit as ended:
        code = ended.code
    error = capsys.readouterr().err
    assert code == 2
    assert told in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_strength_beyond_its_range_is_told_by_its_field(tmp_path: Path, capsys):
    out = str(tmp_path / "a.png")
    assert augmentation_sheet.main(["--out", out, "--config.augment.blur=9"]) == 2
    assert "augment.blur = 9.0: must be from 0 to 8" in capsys.readouterr().err
