"""`allcls explain`: the folder it leaves, what it says, and what it refuses."""

import contextlib
import dataclasses
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from allcls_jax import terminal
from allcls_jax.config import SyntheticConfig
from allcls_jax.data import synthetic, transforms
from allcls_jax.errors import InputError
from allcls_jax.serving.explain import main
from allcls_jax.serving.explanation import job as explanation_job
from allcls_jax.serving.explanation import pictures
from allcls_jax.serving.explanation.folder import new_folder
from allcls_jax.serving.explanation.job import Options, Target, explain
from allcls_jax.serving.explanation.settings import Method, Settings

CELLS = [
    transforms.encode_png(synthetic.draw(SyntheticConfig(num_images=96), 12 * i))
    for i in range(5)
]


def folder_of(path: Path, *names: str) -> Path:
    """Writes synthetic cells under these names."""
    for i, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(CELLS[i])
    return path


def options(**changed) -> Options:
    """Quick ones."""
    return dataclasses.replace(Options(settings=Settings(), sanity_images=0), **changed)


def read(out: Path) -> dict:
    return json.loads((out / "explain.json").read_text())


def test_a_folder_and_a_zip_become_pictures_and_a_record(tiny_model, tmp_path, capsys):
    """Names that are alike, hostile ones and a broken image included."""
    cells = folder_of(tmp_path / "cells", "one/a.png", "two/a.png", "grid.png")
    (cells / "broken.bmp").write_text("no picture")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("C:\\cells\\a.png", CELLS[3])
        archive.writestr("/explain.json.png", CELLS[4])
    out = tmp_path / "out"
    paths = [str(cells), str(tmp_path / "more.zip")]
    returned = explain(tiny_model, paths, out, options(sanity_images=2, sanity_draws=1))

    record = read(out)
    assert record == returned
    files = ["grid-2.png", "a.png", "a-2.png", "a-3.png", "explain_json.png"]
    rows = [row for row in record["images"] if row["error"] is None]
    assert sorted(row["file"] for row in rows) == sorted(files)
    assert {path.name for path in out.iterdir()} == {
        *files,
        "grid.png",
        "explain.json",
    }
    assert {path.name for path in tmp_path.iterdir()} >= {"cells", "more.zip", "out"}
    for name in (*files, "grid.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300
            assert len(np.unique(np.array(picture))) > 20

    assert record["unreadable"] == 1
    (broken,) = [row for row in record["images"] if row["error"]]
    assert broken["image"].endswith("broken.bmp")
    assert "not a picture" in broken["error"]
    assert record["model"]["sha256"] == tiny_model.sha256
    assert record["notes"] == list(tiny_model.notes)
    assert "synthetic cells" in record["notes"]
    assert record["disclaimer"] == "Research use only. Not a medical device."
    assert record["settings"] == {"method": "gradcam", "block": 5}
    check = record["sanity_check"]
    assert [stage["randomised"][-1] for stage in check["stages"]] == [
        "head",
        *(f"block{block}" for block in range(5, 0, -1)),
    ]
    said = capsys.readouterr().out
    assert check["verdict"] in " ".join(said.split())
    assert "broken.bmp: not a picture" in " ".join(said.split())
    assert "synthetic cells" in said
    assert "Research use only. Not a medical device." in said


def test_the_record_agrees_with_the_model_and_with_the_maps(tiny_model, tmp_path):
    cells = folder_of(tmp_path / "cells", "a.png", "b.png", "c.png")
    settings = Settings(method=Method.INTEGRATED_GRADIENTS, steps=4)
    out = tmp_path / "out"
    explain(tiny_model, [str(cells)], out, options(settings=settings, save_maps=True))
    record = read(out)
    with np.load(out / "maps.npz", allow_pickle=False) as saved:
        names, maps = saved["image"].tolist(), saved["map"]
    assert names == [row["image"] for row in record["images"]]
    assert maps.dtype == np.float32
    images = np.stack([tiny_model.read(CELLS[i], name="x").image for i in range(3)])
    probabilities = tiny_model.probabilities(images)
    for image, row, values, probability in zip(
        images, record["images"], maps, probabilities, strict=True
    ):
        assert row["probability"] == pytest.approx(probability, abs=1e-6)
        log_odds = np.log(probability / (1 - probability))
        assert row["log_odds"] == pytest.approx(log_odds, abs=1e-4)
        assert row["decision"] == ("ALL" if probability > 0.5 else "HEM")
        assert row["explained"] == row["decision"]
        on_cell = image.max(-1) > 0
        assert row["cell_share_of_picture"] == pytest.approx(on_cell.mean())
        share = np.abs(values[on_cell]).sum() / np.abs(values).sum()
        assert row["share_on_cell"] == pytest.approx(share, abs=1e-6)
        completeness = row["completeness"]
        assert completeness["sum"] == pytest.approx(values.sum(), abs=1e-5)
        gap = abs(completeness["sum"] - completeness["difference_to_black"])
        assert completeness["error"] == pytest.approx(gap)
    assert record["settings"]["steps"] == 4
    assert "says nothing" in record["share_on_cell_says_nothing"]
    assert record["sanity_check"]["verdict"].startswith("not done")
    gaps = [row["completeness"] for row in record["images"]]
    assert record["completeness_error"] == pytest.approx(
        sum(gap["error"] for gap in gaps)
        / sum(abs(gap["difference_to_black"]) for gap in gaps)
    )
    mean = np.mean([row["share_on_cell"] for row in record["images"]])
    assert record["mean_share_on_cell"] == pytest.approx(mean)


def test_the_target_is_explained_whatever_the_decision(tiny_model, tmp_path):
    cells = folder_of(tmp_path / "cells", "a.png")
    found = {}
    for target in (Target.ALL, Target.HEM):
        out = tmp_path / target
        settings = Settings(method=Method.OCCLUSION, patch=16, stride=16)
        explain(
            tiny_model,
            [str(cells)],
            out,
            options(settings=settings, target=target, save_maps=True),
        )
        assert [row["explained"] for row in read(out)["images"]] == [target]
        with np.load(out / "maps.npz", allow_pickle=False) as saved:
            found[target] = saved["map"]
    np.testing.assert_allclose(found[Target.ALL], -found[Target.HEM], atol=1e-6)
    assert found[Target.ALL].any()


def test_the_threshold_decides_what_is_explained(tiny_model, tmp_path):
    cells = folder_of(tmp_path / "cells", "a.png")
    called = []
    for threshold in ("0.001", "0.999"):
        out = tmp_path / threshold
        explain(tiny_model, [str(cells)], out, options(threshold=threshold))
        called.append(read(out)["images"][0]["explained"])
    assert called == ["ALL", "HEM"]


def test_beyond_the_limit_images_are_left_out_and_it_says_so(
    tiny_model, tmp_path, capsys
):
    """What cannot be read does not count towards it."""
    cells = folder_of(tmp_path / "cells", "b.png", "c.png", "d.png", "e.png")
    (cells / "a.png").write_bytes(b"")
    out = tmp_path / "out"
    explain(tiny_model, [str(cells)], out, options(limit=2))
    assert sorted(path.name for path in out.glob("?.png")) == ["b.png", "c.png"]
    record = read(out)
    assert (record["listed"], record["left_out"], record["unreadable"]) == (5, 2, 1)
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 5 images are left out; --limit explains more" in said


def test_more_images_than_are_kept_at_a_time(tiny_model, tmp_path, monkeypatch):
    cells = folder_of(tmp_path / "cells", "a.png", "b.png", "c.png")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    explain(tiny_model, [str(cells)], whole, options(save_maps=True))
    monkeypatch.setattr(explanation_job, "_CHUNK", 2)
    explain(tiny_model, [str(cells)], parts, options(save_maps=True))
    for name in sorted(path.name for path in whole.iterdir()):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_folder_that_holds_something_is_refused(tiny_model, tmp_path):
    cells = folder_of(tmp_path / "cells", "a.png")
    out = tmp_path / "out"
    out.mkdir()
    explain(tiny_model, [str(cells)], out, options())  # empty: fine
    with pytest.raises(InputError, match=r"is not empty; give another folder"):
        explain(tiny_model, [str(cells)], out, options())
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        explain(tiny_model, [str(cells)], file, options(overwrite=True))
    with pytest.raises(InputError, match="does not exist; make it first"):
        explain(tiny_model, [str(cells)], tmp_path / "no" / "out", options())


def test_overwriting_replaces_an_explanation_and_nothing_else(tiny_model, tmp_path):
    out = tmp_path / "out"
    both = folder_of(tmp_path / "cells", "a.png", "b.png")
    explain(tiny_model, [str(both)], out, options(save_maps=True))
    (out / "mine.png").write_text("mine")
    (tmp_path / "outside.png").write_text("mine")
    record = read(out)
    record["images"].append({"file": "../outside.png", "error": None})
    record["images"].append({"file": "mine.txt", "error": None})
    (out / "mine.txt").write_text("mine")
    (out / "explain.json").write_text(json.dumps(record))
    explain(tiny_model, [str(both / "a.png")], out, options(overwrite=True))
    assert sorted(path.name for path in out.iterdir()) == [
        "a.png",
        "explain.json",
        "grid.png",
        "mine.png",
        "mine.txt",
    ]
    assert (tmp_path / "outside.png").exists()


@pytest.mark.parametrize("name", ["a.png", "grid.png", "explain.json"])
def test_a_file_that_is_no_explanations_is_never_replaced(tiny_model, tmp_path, name):
    """Whether there is an explanation already, or none."""
    cells = folder_of(tmp_path / "cells", "a.png")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name} is in the way"):
        explain(tiny_model, [str(cells)], out, options(overwrite=True))
    assert [path.name for path in out.iterdir()] == [name]
    assert (out / name).read_text() == "mine"

    (out / name).unlink()
    other = folder_of(tmp_path / "other", "b.png")
    explain(tiny_model, [str(other)], out, options())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "a.png").mkdir()
    with pytest.raises(InputError, match=r"a\.png is in the way"):
        explain(tiny_model, [str(cells)], out, options(overwrite=True))
    (out / "a.png").rmdir()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_pictures_that_are_explained_survive(tiny_model, tmp_path, capsys):
    cells = folder_of(tmp_path / "cells", "a.png", "b.png")
    with pytest.raises(InputError, match="all 2 images lie in it"):
        explain(tiny_model, [str(cells)], cells, options(overwrite=True))
    assert [(cells / name).read_bytes() for name in ("a.png", "b.png")] == CELLS[:2]
    assert len(list(cells.iterdir())) == 2

    explain(tiny_model, [str(cells)], cells / "maps", options())
    explain(tiny_model, [str(cells)], cells / "maps", options(overwrite=True))
    assert read(cells / "maps")["listed"] == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "3 of 5 images are left out, for they lie in" in said


def test_a_record_goes_before_what_it_tells_of(tmp_path, monkeypatch):
    out = tmp_path / "out"
    record = json.dumps({"sanity_check": {}, "images": [{"file": "a.png"}]})

    def write(text: str) -> None:
        with new_folder(out) as (folder, _):
            (folder / "a.png").write_text(text)
            (folder / "explain.json").write_text(record)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    write("old")
    write("new")
    assert (out / "a.png").read_text() == "new"
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            write("newer")
    assert [path.name for path in out.iterdir()] == ["a.png"]


def test_what_cannot_be_read_counts_as_progress_and_twice_listed_is_told(
    tiny_model, tmp_path, capsys, monkeypatch
):
    cells = folder_of(tmp_path / "cells", "b.png", "c.png")
    (cells / "a.png").write_bytes(b"")
    totals = {}

    @contextlib.contextmanager
    def track(what: str, total: int, _: str):
        done = []
        yield done.append
        totals[what] = (sum(done), total)

    monkeypatch.setattr(terminal, "track", track)
    paths = [str(cells), str(cells / "b.png")]
    for limit in (2, 3, 4):
        out = tmp_path / str(limit)
        explain(tiny_model, paths, out, options(limit=limit))
        assert totals["explaining"] == (limit, limit)
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 4 images are listed more than once" in said


def test_an_explanation_that_fails_leaves_nothing(tiny_model, tmp_path, monkeypatch):
    cells = folder_of(tmp_path / "cells", "a.png")
    out, there = tmp_path / "out", tmp_path / "there"
    there.mkdir()
    (there / "a.png").write_text("mine")

    def full(*_: object, **__: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures, "grid", full)
    for folder in (out, there):
        with pytest.raises(OSError, match="No space"):
            explain(tiny_model, [str(cells)], folder, options(overwrite=True))
    assert not out.exists()
    assert not list(tmp_path.rglob(".explain*"))
    assert (there / "a.png").read_text() == "mine"
    assert [path.name for path in there.iterdir()] == ["a.png"]


def test_without_a_readable_image_there_is_an_error_and_no_folder(tiny_model, tmp_path):
    (tmp_path / "a.png").write_text("text")
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"none of 1 images could be read \(not a pic"):
        explain(tiny_model, [str(tmp_path / "a.png")], out, options())
    assert not out.exists()
    assert not list(tmp_path.glob(".explain*"))


def test_a_new_folder_has_the_usual_permissions(tmp_path):
    usual = tmp_path / "usual"
    usual.mkdir()
    with new_folder(tmp_path / "out") as (folder, _):
        (folder / "a").write_text("a")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out").stat().st_mode == usual.stat().st_mode


def test_wrong_arguments_are_one_line_and_exit_code_2(tiny_model_dir, tmp_path, capsys):
    cells = folder_of(tmp_path / "cells", "a.png")
    begin = [str(tiny_model_dir), str(cells), "--out", str(tmp_path / "out")]
    for wrong, words in (
        (["--limit", "0"], "--limit=0: must be at least 1"),
        (["--batch_size", "0"], "--batch_size=0"),
        (["--sanity_images", "-1"], "--sanity_images=-1"),
        (["--sanity_draws", "0"], "--sanity_draws=0"),
        (["--block", "6"], "--block=6: must be from 1 to 5"),
        (["--threshold", "2"], "--threshold=2"),
        (["--method", "occlusion", "--patch", "99"], "--patch=99"),
    ):
        assert main([*begin, *wrong]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert words in error
        assert error.count("\n") == 1
    for wrong in (["--method", "magic"], ["--target", "both"], ["--block", "five"]):
        with pytest.raises(SystemExit) as stopped:
            main([*begin, *wrong])
        assert stopped.value.code == 2
        assert capsys.readouterr().err.startswith("error: argument")
    assert not (tmp_path / "out").exists()


def test_the_command_explains(tiny_model_dir, tmp_path, capsys):
    cells = folder_of(tmp_path / "cells", "a.png")
    out = tmp_path / "out"
    command = [str(tiny_model_dir), str(cells), "--out", str(out)]
    command += ["--method", "gradcam++", "--block", "4", "--target", "HEM"]
    assert main([*command, "--sanity_images", "0", "--save_maps"]) == 0
    record = read(out)
    assert record["settings"] == {"method": "gradcam++", "block": 4}
    assert record["target"] == "HEM"
    assert (out / "maps.npz").exists()
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_words_and_notes_stand_on_the_pictures(tiny_model, tmp_path, monkeypatch):
    cells = folder_of(tmp_path / "cells", "a.png")
    shown = []

    def keep(figure, note: str) -> bytes:
        texts = [text.get_text() for text in figure.findobj(Text)]
        shown.append((" ".join(texts), note))
        return b""

    monkeypatch.setattr(pictures, "to_png", keep)
    explain(
        tiny_model,
        [str(cells)],
        tmp_path / "out",
        options(sanity_images=1, sanity_draws=1),
    )
    record = read(tmp_path / "out")
    row = record["images"][0]
    (picture, note), (grid, note_of_grid) = shown
    for words in (
        row["image"],
        f"P(ALL) {row['probability']:.3f}, called {row['decision']}",
        "Grad-CAM, block 5",
        "of the map lies on the cell",
    ):
        assert words in picture
    assert f"P(ALL) {row['probability']:.2f}, {row['decision']}" in grid
    for text in (picture, grid):
        untrusted = record["sanity_check"]["hardly_change"]
        assert ("maps hardly change: do not trust them" in text) == untrusted
    for text in (note, note_of_grid):
        assert "Synthetic cells" in text
        assert record["sanity_check"]["verdict"] in text


def test_colours_tell_for_from_against():
    image = np.zeros((8, 8, 3), np.uint8)
    image[2:6, 2:6] = 90, 40, 100
    values = np.zeros((8, 8), np.float32)
    values[0, 0], values[0, 1], values[3, 3], values[3, 4] = 1, -1, 0.5, -0.5
    mixed = pictures.blend(image, values).astype(int)
    for row, column in ((0, 0), (3, 3)):
        assert mixed[row, column, 0] > mixed[row, column, 2]
    for row, column in ((0, 1), (3, 4)):
        assert mixed[row, column, 0] < mixed[row, column, 2]
    without = values == 0
    assert (mixed[without] == mixed[without][:, :1]).all()  # grey
    assert not mixed[7, 7].any()
    # No map at all, and a cell that is all of the picture.
    grey = pictures.blend(np.full((8, 8, 3), 70, np.uint8), np.zeros((8, 8)))
    assert (grey == 235).all()


def test_the_strongest_colour_is_not_one_pixels_own():
    values = np.ones((40, 40), np.float32)
    values[0, 0] = 1000
    assert pictures.largest(values) == pytest.approx(1)
    assert pictures.largest(0 * values) == 1


def test_heat_maps_for_the_page_are_the_same_in_threads(tiny_model):
    images = tiny_model.check.images[:4]
    alone = [pictures.heat_map_png(tiny_model, image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(lambda image: pictures.heat_map_png(tiny_model, image), images)
        )
    assert together == alone
    assert len(set(alone)) == 4
    for image, probability, png in zip(
        images, tiny_model.probabilities(images), alone, strict=True
    ):
        of_all, of_hem = (
            pictures.heat_map_png(tiny_model, image, target=target)
            for target in ("ALL", "HEM")
        )
        assert of_all != of_hem
        assert png == (of_all if probability > 0.5 else of_hem)
        other = pictures.heat_map_png(tiny_model, image, threshold=1e-6)
        assert other == of_all
    with Image.open(io.BytesIO(alone[0])) as picture:
        assert (picture.format, picture.size) == ("PNG", images.shape[1:3])
    other = pictures.heat_map_png(tiny_model, images[0], "gradcam++", 3)
    assert other != alone[0]
    with pytest.raises(InputError, match="--block=7"):
        pictures.heat_map_png(tiny_model, images[0], block=7)
