import csv
import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from allcls_jax import DISCLAIMER
from allcls_jax.data import transforms
from allcls_jax.data.synthetic_fields import FieldSettings, draw
from allcls_jax.errors import InputError
from allcls_jax.serving import segment as verb
from allcls_jax.serving.model import Model
from allcls_jax.serving.segmentation import outputs
from allcls_jax.serving.segmentation.nuclei import CAVEAT

SMALL = FieldSettings(width=360, height=270, scale=0.2, nuclei=7, touching=0.2)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return draw(SMALL, 210).picture


@pytest.fixture(scope="module")
def done(
    picture: np.ndarray, tiny_model: Model, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One field, segmented with a model and a known scale."""
    folder = tmp_path_factory.mktemp("segment")
    save(picture, folder / "smear 1.png")
    verb.segment_fields(
        [str(folder / "smear 1.png")], folder / "out", model=tiny_model, scale=0.2
    )
    return folder / "out"


def save(picture: np.ndarray, path: Path, mode: str = "RGB", **options: Any) -> None:
    Image.fromarray(picture).convert(mode).save(path, **options)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "cells.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_each_cell_is_in_the_table_the_json_and_a_crop_alike(done: Path):
    rows = table(done)
    coco = read_json(done / "smear_1.coco.json")
    assert len(rows) == len(coco["annotations"]) >= 4
    assert (coco["images"][0]["width"], coco["images"][0]["height"]) == (360, 270)
    names = {one["id"]: one["name"] for one in coco["categories"]}
    assert list(names.values()) == ["ALL", "HEM", "uncertain"]
    for number, (row, cell) in enumerate(
        zip(rows, coco["annotations"], strict=True), 1
    ):
        assert (int(row["cell"]), cell["id"]) == (number, number)
        box = [int(row[side]) for side in ("left", "top", "width", "height")]
        assert box == cell["bbox"]
        assert int(row["area"]) == cell["area"]
        assert float(row["scale"]) == 0.2
        probability = float(row["probability"])
        assert probability == cell["probability"]
        called = "ALL" if probability > 0.5 else "HEM"
        assert row["decision"] == called
        kind = "uncertain" if row["abstain"] == "true" else called
        assert names[cell["category_id"]] == kind
        assert cell["score"] == pytest.approx(max(probability, 1 - probability))
        crop = done / row["crop"]
        assert crop == done / "smear_1" / f"{number:04d}.png"
        with Image.open(crop) as image:
            assert image.size == (450, 450)


def test_the_polygons_of_the_json_are_the_nuclei(done: Path, picture: np.ndarray):
    coco = read_json(done / "smear_1.coco.json")
    truth = draw(SMALL, 210).nuclei
    for cell in coco["annotations"]:
        (flat,) = cell["segmentation"]
        assert len(flat) % 2 == 0
        assert cell["iscrowd"] == 0
        # Pillow counts from the centre of the first pixel, COCO from its corner.
        points = [(x - 0.5, y - 0.5) for x, y in zip(flat[::2], flat[1::2])]  # noqa: B905
        canvas = Image.new("1", (360, 270))
        ImageDraw.Draw(canvas).polygon(points, fill=1)
        drawn = np.asarray(canvas)
        assert np.count_nonzero(drawn) == pytest.approx(cell["area"], rel=0.06)
        number = np.argmax(np.bincount(truth[drawn], minlength=2)[1:]) + 1
        both = np.count_nonzero(drawn & (truth == number))
        assert both / np.count_nonzero(drawn | (truth == number)) > 0.7


def test_a_crop_read_as_a_picture_gets_the_same_probability(
    done: Path, tiny_model: Model
):
    rows = table(done)
    cells = [
        tiny_model.read((done / row["crop"]).read_bytes(), name=row["crop"])
        for row in rows
    ]
    again = tiny_model.probabilities(np.stack([cell.image for cell in cells]))
    found = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(found, again, atol=1e-6)
    for row, cell in zip(rows, cells, strict=True):
        assert row["warnings"] == "; ".join(cell.warnings)
        assert cell.area * 0.2**2 == pytest.approx(int(row["area"]), rel=0.06)


def test_whatever_leaves_says_what_it_is_worth(done: Path, tiny_model: Model):
    info = read_json(done / "smear_1.coco.json")["info"]
    record = read_json(done / "segment.json")
    for words in (info, record):
        assert words["disclaimer"] == DISCLAIMER
        assert words["caveat"] == CAVEAT
        assert set(tiny_model.notes) <= set(words["notes"])
        assert words["model"]["sha256"] == tiny_model.sha256
    assert record["settings"]["scale"] == 0.2
    assert record["fields"][0]["cells"] == len(table(done))


def test_help_shows_an_example_and_honest_words(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        verb.main(["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert CAVEAT in text
    assert DISCLAIMER in text
    assert "allcls segment field.png --model" in text


def test_the_overlay_has_an_outline_of_its_colour_around_each_cell(
    picture: np.ndarray, done: Path
):
    with Image.open(done / "smear_1.overlay.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] >= 1000  # small fields are enlarged
    coco = read_json(done / "smear_1.coco.json")
    kinds = {
        coco["categories"][a["category_id"] - 1]["name"] for a in coco["annotations"]
    }
    colours = {"ALL": (196, 78, 0), "HEM": (0, 99, 163), "uncertain": (240, 180, 0)}
    field = pixels[90:-160]
    for kind, colour in colours.items():
        count = np.count_nonzero((np.abs(field - colour) < 12).all(axis=-1))
        assert (count > 300) == (kind in kinds), kind


def test_without_a_model_nuclei_are_found_and_the_scale_estimated(
    picture: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save(picture, tmp_path / "a.tif")
    out = tmp_path / "out"
    assert verb.main([str(tmp_path / "a.tif"), "--out", str(out)]) == 0
    rows = table(out)
    assert len(rows) >= 4
    areas = [int(row["area"]) for row in rows]
    scale = np.sqrt(np.median(areas) / 33_162)
    assert float(rows[0]["scale"]) == pytest.approx(scale, abs=1e-4)
    assert {row["probability"] for row in rows} == {""}
    coco = read_json(out / "a.coco.json")
    assert [one["name"] for one in coco["categories"]] == ["nucleus"]
    assert "estimated" in coco["info"]["scale_from"]
    assert "rough guess" in coco["info"]["scale_from"]
    assert coco["info"]["model"] is None
    told = " ".join(capsys.readouterr().out.split())
    assert "give --scale" in told
    assert DISCLAIMER in told
    areas = [
        np.count_nonzero(
            transforms.decode((out / row["crop"]).read_bytes(), name="").any(-1)
        )
        for row in rows
    ]
    assert np.median(areas) == pytest.approx(33_162, rel=0.03)


def test_broken_fields_are_rows_and_the_rest_goes_on(
    picture: np.ndarray, tmp_path: Path
):
    folder = tmp_path / "fields"
    folder.mkdir()
    save(picture, folder / "alpha.png", "RGBA")
    save(picture, folder / "cmyk.jpg", "CMYK", quality=95)
    save(picture[:, :, 0], folder / "grey.png", "L")
    deep = picture.mean(-1).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    save(picture[:1, :1], folder / "pixel.png")
    save(np.zeros_like(picture), folder / "black.bmp")
    whole = io.BytesIO()
    Image.fromarray(picture).save(whole, "PNG")
    (folder / "cut.png").write_bytes(whole.getvalue()[:5000])
    (folder / "text.bmp").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "huge.png").write_bytes(header_of(20_000, 20_000))
    still = Image.fromarray(picture)
    still.save(folder / "moving.png", save_all=True, append_images=[still.rotate(90)])
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.writestr("inside/alpha.png", whole.getvalue())
    out = tmp_path / "out"
    results = verb.segment_fields([str(folder)], out)
    assert len(results) == 12
    broken = {
        row["field"].rpartition("/")[2]: row["error"]
        for row in table(out)
        if row["error"]
    }
    unlike = {"cut.png", "text.bmp", "empty.png", "huge.png", "moving.png"}
    assert broken.keys() == unlike
    assert "more than 100,000,000 pixels; give a smaller part" in broken["huge.png"]
    assert "holds 2 pictures; save each as a file of its own" in broken["moving.png"]
    assert "cell" not in " ".join(broken.values()).replace(str(tmp_path), "")
    found = {
        result.name.rpartition("/")[2]: result.segmentation
        for result in results
        if result.segmentation is not None
    }
    assert found["pixel.png"].nuclei == found["black.bmp"].nuclei == ()
    assert len(found["cmyk.jpg"].nuclei) >= 4
    stems = {result.stem for result in results}
    assert {"alpha", "alpha-2"} <= stems
    assert len(stems) == 12
    for stem in ("alpha", "alpha-2", "pixel", "black", "grey", "deep"):
        assert (out / f"{stem}.coco.json").is_file()
        assert (out / f"{stem}.overlay.png").is_file()
    assert not list(out.rglob(".*"))  # nothing half written


def test_no_readable_field_at_all_is_a_mistake_with_the_reasons_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "a.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert verb.main([str(tmp_path / "a.png"), "--out", str(out)]) == 2
    assert "none of the 1 fields" in capsys.readouterr().err
    assert "not a picture" in table(out)[0]["error"]


def test_a_folder_with_something_in_it_is_left_alone(
    picture: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save(picture, tmp_path / "a.png")
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    command = [str(tmp_path / "a.png"), "--out", str(out)]
    assert verb.main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert verb.main([*command, "--overwrite"]) == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "cells.csv").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("cells.csv", "segment.json", "a.coco.json", "a.overlay.png", "a"),
        *("a/0001.png", "a/0050.png"),
    ],
)
def test_what_was_not_segmented_is_never_replaced(
    name: str, picture: np.ndarray, tmp_path: Path
):
    save(picture, tmp_path / "a.png")
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("[]")
    with pytest.raises(InputError, match=f"{name} is in the way"):
        verb.segment_fields([str(tmp_path / "a.png")], out, overwrite=True)
    assert [path for path in out.rglob("*") if path.is_file()] == [out / name]
    assert (out / name).read_text() == "[]"


def test_a_second_run_replaces_the_first_and_nothing_else(
    picture: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Its own outputs, which lie among the fields, are not taken for fields."""
    fields = tmp_path / "fields"
    fields.mkdir()
    for name in ("a.png", "b.png"):
        save(picture, fields / name)
    out = fields / "out"
    verb.segment_fields([str(fields)], out)
    crops = sorted(path.name for path in (out / "a").iterdir())
    (out / "a" / "mine.png").write_bytes((out / "a" / "0001.png").read_bytes())
    save(picture[:120], fields / "a.png")
    (fields / "b.png").write_bytes(b"no picture")
    capsys.readouterr()
    paths = [str(fields), str(fields / "a.png")]
    results = verb.segment_fields(paths, out, overwrite=True)
    assert [Path(result.name).name for result in results] == ["a.png", "b.png", "a.png"]
    said = " ".join(capsys.readouterr().out.split())
    number = 2 * len(crops) + 3
    assert f"{number} of {number + 3} fields are left out, for they lie in" in said
    assert f"1 of {number + 3} fields are listed more than once" in said
    fewer = len(read_json(out / "a.coco.json")["annotations"])
    assert 0 < fewer < len(crops)
    assert {path.name for path in (out / "a").iterdir()} == {*crops[:fewer], "mine.png"}
    assert {path.name for path in out.iterdir()} == {
        *("a", "a.coco.json", "a.overlay.png"),
        *("a-2", "a-2.coco.json", "a-2.overlay.png"),
        *("cells.csv", "segment.json"),
    }


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left")])
def test_where_the_json_is_all_of_the_field_is_there(
    error: BaseException,
    picture: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """And where the writing stops, nothing of it is, not even a new folder."""
    save(picture, tmp_path / "a.png")
    old, new = tmp_path / "old", tmp_path / "new"
    verb.segment_fields([str(tmp_path / "a.png")], old)

    def stop(*_: object, **__: object) -> bytes:
        assert not (old / "a.coco.json").exists()
        assert not (old / "segment.json").exists()
        raise error

    monkeypatch.setattr(outputs, "overlay", stop)
    for out in (old, new):
        with pytest.raises((KeyboardInterrupt, OSError)):
            verb.segment_fields([str(tmp_path / "a.png")], out, overwrite=True)
    assert not new.exists()
    assert [path.name for path in old.iterdir()] == ["cells.csv"]


def test_awkward_names_of_fields_get_outputs_of_their_own(
    picture: np.ndarray, tmp_path: Path
):
    names = ["cells.csv.png", "a.coco.json.png", "a.png", "細" * 80 + ".png"]
    for name in names:
        save(picture, tmp_path / name)
    out = tmp_path / "out"
    results = verb.segment_fields([str(tmp_path / name) for name in names], out)
    stems = ["cells_csv", "a_coco_json", "a", "細" * 40]
    assert [result.stem for result in results] == stems
    assert table(out)
    for stem in stems:
        assert read_json(out / f"{stem}.coco.json")["annotations"]
        assert (out / stem / "0001.png").is_file()


def header_of(width: int, height: int) -> bytes:
    """Returns the begin of a PNG, up to its pixels."""
    size = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(size))
    begin = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + size + check
    return begin + struct.pack(">I", 1) + b"IDAT"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scale", "0"], "--scale=0"),
        (["--scale", "nan"], "--scale=nan"),
        (["--side", "3"], "--side=3"),
        (["--threshold", "0.5"], "--threshold=0.5: needs --model"),
        (["--coverage", "0.9"], "--coverage=0.9: needs --model"),
        (["--model", "MODEL", "--coverage", "7"], "--coverage=7: must be"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    arguments: list[str],
    words: str,
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / "a.png").write_bytes(b"")
    out = tmp_path / "out"
    given = [word.replace("MODEL", str(tiny_model_dir)) for word in arguments]
    assert verb.main([str(tmp_path / "a.png"), "--out", str(out), *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_what_was_done_before_a_stop_is_in_the_table(
    picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("a.png", "b.png"):
        save(picture, tmp_path / name)
    seen = []

    def stop_at_the_second(*args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    original = verb.segment
    monkeypatch.setattr(verb, "segment", stop_at_the_second)
    out = tmp_path / "out"
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    with pytest.raises(KeyboardInterrupt):
        verb.segment_fields(paths, out)
    assert {row["field"] for row in table(out)} == {paths[0]}
    assert (out / "a.coco.json").is_file()
    assert not (out / "segment.json").exists()
