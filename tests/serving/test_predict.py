import csv
import json
import os
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from allcls_jax import DISCLAIMER, locking
from allcls_jax.data import transforms
from allcls_jax.errors import InputError
from allcls_jax.serving import predict
from allcls_jax.serving.model import Cell, Model, open_model
from allcls_jax.serving.prediction import disk_sort, inputs, tables
from allcls_jax.serving.prediction import job as prediction_job
from allcls_jax.serving.prediction import on_ray as predict_ray
from allcls_jax.serving.prediction.job import Processes
from tests.data import layouts, pictures
from tests.full_disk import room_for
from tests.privileges import permissions_hold

NUMBER = 11
BLOCK = 3  # pictures; 4 blocks


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Model:
    return open_model(tiny_model_dir, batch_size=2)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with eleven cells of four patients, one of them broken."""
    monkeypatch.chdir(tmp_path)
    for i in range(NUMBER):
        name = f"UID_{'H' * (i % 2)}{i % 4}_{i}_1_{'hem' if i % 2 else 'all'}.png"
        layouts.write(Path("cells"), {name: cell(i)})
    broken = sorted(Path("cells").iterdir())[4]
    broken.write_bytes(broken.read_bytes()[:200])
    return tmp_path


def cell(seed: int) -> bytes:
    return transforms.encode_png(pictures.cell_image(64, level=60 + 9 * seed))


def run(model: Model, *paths: str, out: str = "t.csv", **options: Any):
    options = {"block_size": BLOCK} | options
    return prediction_job.predict(model, paths or ("cells",), Path(out), **options)


def table(out: str = "t.csv") -> list[dict[str, str]]:
    with Path(out).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def expected(model: Model, data: bytes) -> float:
    image = model.read(data, name="x").image
    return float(model.probabilities(image[None])[0])


def left_over() -> list[str]:
    return sorted(str(path) for path in Path().iterdir() if path.name != "cells")


def test_rows_are_what_the_model_says_of_each_picture(here: Path, model: Model):
    counts = run(model, threshold="0.4", coverage=0.5)
    rows = table()
    assert [row["image"] for row in rows] == [str(p) for p in in_order()]
    found = 0
    for row, path in zip(rows, in_order(), strict=True):
        if row["error"]:
            assert row["probability"] == row["decision"] == row["abstain"] == ""
            continue
        probability = float(row["probability"])
        told = expected(model, path.read_bytes())
        np.testing.assert_allclose(probability, told, rtol=1e-6)
        one = model.prediction(
            row["image"],
            model.read(path.read_bytes(), name="x"),
            probability,
            threshold=0.4,
            coverage=0.5,
        )
        assert (
            row["decision"] == one.decision == ("ALL" if probability > 0.4 else "HEM")
        )
        assert row["abstain"] == str(one.abstain).lower()
        assert float(row["uncertainty"]) == pytest.approx(one.uncertainty, rel=1e-5)
        assert row["warnings"] == "; ".join(one.warnings)
        found += 1
    assert found == NUMBER - 1
    assert counts is not None
    assert (counts["images"], counts["read"], counts["failed"]) == (NUMBER, found, 1)
    assert counts["ALL"] == sum(row["decision"] == "ALL" for row in rows)
    assert counts["abstained"] == sum(row["abstain"] == "true" for row in rows)
    assert counts["with warnings"] == sum(bool(row["warnings"]) for row in rows)
    assert left_over() == ["t.csv", "t.csv.json", "t.csv.patients.csv"]


def in_order() -> list[Path]:
    return sorted(Path("cells").iterdir(), key=lambda p: inputs.files.natural(str(p)))


def test_record_tells_what_the_table_is_of(here: Path, model: Model):
    run(model, threshold="0.3")
    record = json.loads(Path("t.csv.json").read_text())
    assert record["model"] == {"path": str(model.path), "sha256": model.sha256}
    assert (record["threshold"], record["coverage"]) == (0.3, 0.9)
    assert record["disclaimer"] == DISCLAIMER
    assert record["notes"] == list(model.notes)
    assert "synthetic cells" in record["notes"]
    assert record["counts"]["images"] == NUMBER
    assert record["provenance"]["command"]


def test_patients_come_from_names_and_the_column_of_a_csv(here: Path, model: Model):
    run(model)
    with Path("t.csv.patients.csv").open(newline="") as file:
        rows = {row["patient"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["0", "2", "H1", "H3"]
    for patient, row in rows.items():
        of = [one for one in table() if one["patient"] == patient]
        read = [float(one["probability"]) for one in of if not one["error"]]
        assert int(row["images"]) == len(of)
        assert int(row["failed"]) == len(of) - len(read)
        np.testing.assert_allclose(float(row["mean_probability"]), np.mean(read))
    Path("list.csv").write_text(f"path,patient\n{in_order()[0]},my patient\n")
    run(model, "list.csv", overwrite=True)
    assert [row["patient"] for row in table()] == ["my patient"]
    shutil.copy(in_order()[0], "plain.png")
    run(model, "plain.png", overwrite=True)
    assert not Path("t.csv.patients.csv").exists()


@pytest.mark.parametrize("out", ["t.jsonl", "t.parquet"])
def test_other_formats_say_the_same(here: Path, model: Model, out: str):
    if out == "t.parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
    run(model)
    run(model, out=out, overwrite=True)
    if out == "t.parquet":
        found = parquet.read_table(out)
        rows = found.to_pylist()
        assert found.schema.metadata[b"disclaimer"].decode() == DISCLAIMER
        assert b"synthetic cells" in found.schema.metadata[b"notes"]
    else:
        rows = [json.loads(line) for line in Path(out).read_text().splitlines()]
    for row, other in zip(rows, table(), strict=True):
        assert row["image"] == other["image"]
        assert repr(row["probability"] or "") == repr(
            float(other["probability"]) if other["probability"] else ""
        )


def png_header(width: int, height: int) -> bytes:
    """A PNG that begins as one of this size does."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b"")


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (9, 9), (i, 0, 0)) for i in range(2)]
    return pictures.encode(frames[0], kind, save_all=True, append_images=frames[1:])


BAD = {
    "truncated.png": (cell(0)[:200], "cannot be decoded"),
    "truncated.bmp": (
        pictures.encode(pictures.cell_image(64), "BMP")[:999],
        "cannot be decoded",
    ),
    "text.bmp": (b"just text", "not a picture"),
    "empty.png": (b"", "the file is empty"),
    "huge.png": (png_header(20_000, 20_000), "more than 100,000,000 pixels"),
    "animated.png": (animated("PNG"), "holds 2 pictures"),
    "pages.tif": (animated("TIFF"), "holds 2 pictures"),
    "moving.gif": (animated("GIF"), ".gif is not read; convert it"),
    "floats.tif": (
        pictures.encode(Image.new("F", (9, 9)), "TIFF"),
        "range is not known",
    ),
}


def test_broken_pictures_are_rows_with_their_reasons(here: Path, model: Model):
    layouts.write(Path("bad"), {name: data for name, (data, _) in BAD.items()})
    layouts.pack(Path("bad.zip"), {"z.png": b"text", "inner.zip": b""})
    Path("link.png").symlink_to("nowhere.png")
    run(model)
    good = table()
    counts = run(model, "bad", "bad.zip", "link.png", "cells", overwrite=True)
    rows = {row["image"]: row for row in table()}
    for name, (_, reason) in BAD.items():
        row = rows.pop(f"bad/{name}")
        assert reason in row["error"], row
        assert row["probability"] == row["decision"] == ""
    assert "not a picture" in rows.pop("bad.zip!z.png")["error"]
    assert "a zip inside a zip" in rows.pop("bad.zip!inner.zip")["error"]
    assert "No such file" in rows.pop("link.png")["error"]
    for row, alone in zip(rows.values(), good, strict=True):
        assert row["image"] == alone["image"]
        if alone["probability"]:  # another batch: the last bits may differ
            np.testing.assert_allclose(
                float(row["probability"]), float(alone["probability"]), rtol=1e-5
            )
    assert counts is not None
    assert counts["failed"] == len(BAD) + 4


def test_odd_pictures_that_can_be_read_are_read_as_what_they_show(
    here: Path, model: Model
):
    image = pictures.cell_image(64)
    picture = Image.fromarray(image)
    grey = image[..., :1].repeat(3, axis=-1)
    alpha = Image.fromarray(image)
    alpha.putalpha(Image.fromarray((image.any(-1) * 255).astype(np.uint8)))
    cmyk = Image.merge(
        "CMYK", [*Image.fromarray(255 - image).split(), Image.new("L", (64, 64))]
    )
    sixteen = Image.fromarray(image[..., 0].astype(np.uint16) * 257)
    Path("odd").mkdir()
    for name, kind, odd in (
        ("0 plain.png", "PNG", picture),
        ("1 alpha.png", "PNG", alpha),
        ("2 cmyk.tif", "TIFF", cmyk),
        ("3 grey.png", "PNG", Image.fromarray(grey)),
        ("4 sixteen.png", "PNG", sixteen),
        ("5 one.png", "PNG", Image.new("RGB", (1, 1), (200, 100, 200))),
    ):
        Path("odd", name).write_bytes(pictures.encode(odd, kind))
    run(model, "odd")
    rows = table()
    assert [row["error"] for row in rows] == [""] * 6
    found = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(found[1:3], [found[0]] * 2, rtol=1e-5)
    np.testing.assert_allclose(found[4], found[3], rtol=1e-5)
    assert abs(found[3] - found[0]) > 1e-4
    assert rows[5]["warnings"], "one pixel is no cell"


def test_nothing_readable_is_a_mistake_with_the_reasons_in_the_table(
    here: Path, model: Model, tiny_model_dir: Path, capsys
):
    layouts.write(Path("bad"), {"a.png": b"x", "b.png": b""})
    assert predict.main([str(tiny_model_dir), "bad", "--out", "t.csv"]) == 2
    assert "none of 2 images could be read" in capsys.readouterr().err
    assert ["not a picture" in row["error"] for row in table()] == [True, False]


def test_command_tells_counts_failures_notes_and_the_disclaimer(
    here: Path, tiny_model_dir: Path, capsys
):
    arguments = [str(tiny_model_dir), "cells", "--out", "t.csv", "--threshold", "0.5"]
    assert predict.main(arguments) == 0
    said = capsys.readouterr().out
    for text in (
        f"1 of {NUMBER} images could not be read",
        "cannot be decoded",
        "called HEM",
        "synthetic cells",
        DISCLAIMER,
    ):
        assert text in said
    assert predict.main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("cells", "--out", "t.xlsx"), "must be one of .csv, .jsonl, .parquet"),
        (("cells", "--out", "none/t.csv"), "its folder does not exist"),
        (("cells", "--out", "cells.csv"), "is a folder"),
        (("gone", "--out", "t.csv"), "gone: does not exist"),
        (("cells", "x/*.png", "--out", "t.csv"), "x/*.png: nothing matches it"),
        (("~no_such/x", "--out", "t.csv"), "begins with ~ and the name of no user"),
        (("cells", "--out", "~no_such/t.csv"), "begins with ~ and the name of no user"),
        (("cells", "--out", "t.csv", "--batch_size", "0"), "batch_size = 0: must be"),
        (("cells", "--out", "t.csv", "--batch_size=-8"), "batch_size = -8: must be"),
        (("empty", "--out", "t.csv"), "no images; looked for"),
        (("cells", "--out", "t.csv", "--threshold", "2"), "--threshold=2"),
        (("cells", "--out", "t.csv", "--coverage", "0"), "--coverage=0"),
        (("cells", "--out", "t.csv", "--num_processes", "0"), "--num_processes=0"),
        (("cells", "--out", "t.csv", "--process_id", "1"), "--process_id=1"),
        (("cells", "--out", "t.csv", "--ray", "--process_id", "1"), "process_id=1"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(
    here: Path, tiny_model_dir: Path, capsys, arguments, reason: str
):
    Path("empty").mkdir()
    Path("cells.csv").mkdir()
    before = left_over()
    assert predict.main([str(tiny_model_dir), *arguments]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert "Traceback" not in error
    assert left_over() == before


def test_defaults_of_the_command_are_those_of_the_job():
    arguments = predict.parser().parse_args(["m", "p", "--out", "t.csv", "--ray"])
    assert arguments.ray == predict_ray.LOCAL


def stop_at(model: Model, monkeypatch: pytest.MonkeyPatch, call: int) -> list[int]:
    """Makes a call of the model end the job as Ctrl-C does; gives the calls."""
    real, calls = Model.probabilities, []

    def probabilities(self: Model, images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(self, images)

    monkeypatch.setattr(Model, "probabilities", probabilities)
    return calls


WHOLE = ["whole.csv", "whole.csv.json", "whole.csv.patients.csv"]


@pytest.fixture
def whole(here: Path, model: Model) -> bytes:
    """The table of a job that nobody stopped."""
    run(model, out="whole.csv")
    return Path("whole.csv").read_bytes()


@pytest.mark.parametrize("call", [1, 2, 4])
def test_stopped_job_goes_on_to_the_same_table(
    here: Path, model: Model, whole: bytes, monkeypatch, call: int
):
    stop_at(model, monkeypatch, call)
    with pytest.raises(KeyboardInterrupt):
        run(model)
    assert not Path("t.csv").exists()
    log = Path("t.csv.part/process_0/rows.jsonl")
    if call > 1:
        with log.open("ab") as file:  # as if it had been killed while it wrote
            file.write(b'{"block": 3, "rows": [{"image": "ha')
    calls = stop_at(model, monkeypatch, 99)
    run(model)
    assert len(calls) == 4 - (call - 1), "only what was left"
    assert Path("t.csv").read_bytes() == whole
    assert not Path("t.csv.part").exists()


def test_ctrl_c_says_that_the_same_command_goes_on(
    here: Path, tiny_model_dir: Path, monkeypatch, capsys
):
    monkeypatch.setattr(prediction_job, "BLOCK_SIZE", BLOCK)
    arguments = [str(tiny_model_dir), "cells", "--out", "t.csv"]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Model, "probabilities", interrupt)
        assert predict.main(arguments) == 130
    assert "t.csv.part, and the same command goes on" in capsys.readouterr().err
    assert predict.main(arguments) == 0


@pytest.fixture
def stopped(here: Path, model: Model, monkeypatch) -> Path:
    """The folder of a job that was stopped."""
    with monkeypatch.context() as patched:
        stop_at(model, patched, 3)
        with pytest.raises(KeyboardInterrupt):
            run(model)
    return Path("t.csv.part")


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (None, {"threshold": "0.3"}, "threshold: 0.5 then, 0.3 now"),
        (None, {"coverage": 0.8}, "coverage: 0.9 then, 0.8 now"),
        (None, {"block_size": 4}, "block size: 3 then, 4 now"),
        ("add", {}, "number of images: 11 then, 12 now"),
        ("touch", {}, "names, sizes and times"),
    ],
)
def test_stopped_job_does_not_go_on_with_something_else(
    stopped: Path, model: Model, change: str | None, options: dict, reason: str
):
    rows = (stopped / "process_0/rows.jsonl").read_bytes()
    if change == "add":
        Path("cells/z.png").write_bytes(cell(1))
    if change == "touch":
        os.utime(in_order()[0], (1, 1))
    with pytest.raises(InputError) as error:
        run(model, **options)
    assert reason in str(error.value)
    assert "--overwrite" in str(error.value)
    assert (stopped / "process_0/rows.jsonl").read_bytes() == rows, "nothing is lost"
    run(model, overwrite=True, **options)
    assert len(table()) == NUMBER + (change == "add")
    assert not stopped.exists()


def test_another_model_does_not_go_on(stopped: Path, model: Model, monkeypatch):
    monkeypatch.setattr(model, "sha256", "other")
    with pytest.raises(InputError, match=r"model: '\w+' then, 'other' now"):
        run(model)


@pytest.mark.parametrize("damage", [b"{}\n", b'{"block": 99, "rows": []}\n', b"\0\n"])
def test_damaged_log_is_told(stopped: Path, model: Model, damage: bytes):
    with (stopped / "process_0/rows.jsonl").open("ab") as file:
        file.write(damage)
    with pytest.raises(InputError, match=r"rows\.jsonl: damaged; remove t\.csv\.part"):
        run(model)


def test_two_of_the_same_at_once_are_kept_apart(stopped: Path, model: Model):
    with locking.alone_in(stopped / "process_0") as alone:
        assert alone
        with pytest.raises(InputError, match="another process is at work"):
            run(model)
        with pytest.raises(InputError, match="at work on another job"):
            run(
                model,
                threshold="0.2",
                overwrite=True,
                processes=Processes(number=2, index=1),
            )
    run(model)
    assert len(table()) == NUMBER


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_processes_divide_the_blocks_and_the_last_writes_the_table(
    here: Path, model: Model, whole: bytes, order, monkeypatch, capsys
):
    calls = stop_at(model, monkeypatch, 99)
    for place, index in enumerate(order):
        assert not Path("t.csv").exists()
        done = run(model, processes=Processes(number=3, index=index))
        assert (done is None) == (place < 2)
    assert len(calls) == 4
    assert Path("t.csv").read_bytes() == whole
    assert not Path("t.csv.part").exists()
    # One that comes late, or again, finds the work done; another job is another.
    for overwrite in (False, True):
        late = Processes(number=3, index=1)
        assert run(model, processes=late, overwrite=overwrite) is None
        assert "complete" in capsys.readouterr().out
        assert not Path("t.csv.part").exists()
    with pytest.raises(InputError, match="exists; give --overwrite"):
        run(model, threshold="0.2", processes=Processes(number=3, index=1))


def test_number_of_processes_may_change_between_stop_and_end(
    stopped: Path, model: Model, whole: bytes
):
    assert run(model, processes=Processes(number=2, index=1)) is None
    run(model)
    assert Path("t.csv").read_bytes() == whole


def test_overwriting_jobs_of_several_processes_do_not_drop_each_other(
    here: Path, model: Model, whole: bytes
):
    run(model, threshold="0.2")
    for index in range(2):
        done = run(model, overwrite=True, processes=Processes(number=2, index=index))
        assert (done is None) == (index == 0)
    assert Path("t.csv").read_bytes() == whole


@pytest.mark.parametrize("name", ["t.csv.json", "t.csv.patients.csv"])
def test_what_lies_beside_is_not_overwritten_unasked(here, model: Model, name: str):
    Path(name).write_text("mine")
    with pytest.raises(InputError, match=f"{name}: exists; give --overwrite"):
        run(model)
    assert left_over() == [name]
    assert Path(name).read_text() == "mine"


# The list takes more than the first, the log of the rows more than the second.
@pytest.mark.parametrize("num_bytes", [500, 2000])
def test_full_disk_is_told_and_what_is_done_is_kept(
    here: Path, model: Model, whole: bytes, num_bytes: int
):
    with room_for(num_bytes), pytest.raises(InputError) as error:
        run(model)
    assert "File too large; make room" in str(error.value)
    begun = num_bytes == 2000
    kept = "t.csv.part, and the same command goes on" in str(error.value)
    assert kept == Path("t.csv.part/process_0/rows.jsonl").exists() == begun
    assert left_over() == ["t.csv.part"] * begun + WHOLE
    run(model)
    assert Path("t.csv").read_bytes() == whole
    assert not Path("t.csv.part").exists()


@pytest.mark.parametrize("suffix", tables.Format)
def test_disk_that_is_full_at_the_end_costs_nothing(
    here: Path, model: Model, suffix: str
):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out = f"t{suffix}"
    *others, last = (Processes(number=4, index=index) for index in range(4))
    for one in others:
        run(model, out=out, processes=one)
    # Room for the list, and for the rows of a block, but not for the table.
    with room_for(1500), pytest.raises(InputError, match="File too large; make room"):
        run(model, out=out, processes=last)
    assert left_over() == [f"{out}.part"]
    assert len(list(Path(f"{out}.part").glob("*/rows.jsonl"))) == 4
    assert run(model, out=out, processes=last) is not None
    assert left_over() == [out, f"{out}.json", f"{out}.patients.csv"]


@pytest.mark.parametrize("out", ["patients.jsonl", "images.jsonl", "job.csv"])
def test_a_table_may_be_called_as_what_lies_in_the_log(here, model: Model, out: str):
    run(model, out=out)
    assert left_over() == [out, f"{out}.json", f"{out}.patients.csv"]
    with Path(out).open(encoding="utf-8") as file:
        assert sum(1 for _ in file) == NUMBER + out.endswith(".csv")


def test_tables_of_one_name_in_two_formats_have_patients_of_their_own(
    here: Path, model: Model
):
    run(model)
    run(model, out="t.jsonl")
    first, second = Path("t.csv.patients.csv"), Path("t.jsonl.patients.csv")
    assert first.read_bytes() == second.read_bytes()


def test_what_is_no_number_is_a_row_with_that_reason(
    here: Path, model: Model, monkeypatch
):
    whole = Model.probabilities

    def broken(self: Model, images: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(images)) == 1, np.nan, whole(self, images))

    monkeypatch.setattr(Model, "probabilities", broken)
    counts = run(model)
    assert counts is not None
    told = [row for row in table() if row["error"].startswith("the network gives no")]
    assert len(told) == 4  # of each block
    assert all(row["probability"] == row["decision"] == "" for row in told)
    assert counts["failed"] == 5


def test_a_model_that_computes_otherwise_begins_nothing(
    here: Path, model: Model, monkeypatch
):
    def damaged(self: Model) -> float:
        raise InputError("its check cells give other outputs")

    monkeypatch.setattr(Model, "self_check", damaged)
    with pytest.raises(InputError, match="check cells"):
        run(model)
    assert not Path("t.csv").exists()


def test_folder_that_must_not_be_written_to_is_told(here: Path, model: Model):
    Path("shut").mkdir(mode=0o500)
    with (
        permissions_hold(),
        pytest.raises(InputError, match="Permission denied; change its permissions"),
    ):
        run(model, out="shut/t.csv")


def test_ten_times_the_images_take_no_more_memory(
    here: Path, model: Model, monkeypatch
):
    """Of the job alone: pictures and network are replaced by small things."""
    image = np.zeros((2, 2, 3), np.uint8)
    monkeypatch.setattr(model, "read", lambda data, name: Cell(image, 1, ()))
    monkeypatch.setattr(
        model, "probabilities", lambda images: np.full(len(images), 0.4)
    )
    monkeypatch.setattr(disk_sort, "_LINES", 20)
    monkeypatch.setattr(disk_sort, "_RUNS", 3)
    monkeypatch.setattr(inputs, "_STAMPS", 4)
    monkeypatch.setattr(inputs, "_THREADS", 2)
    peaks = []
    # What is made once, in the first, or by another thread meanwhile, does not count.
    for number in (30, 200, 200, 1500, 1500):
        rows = "".join(f"{in_order()[0]},p{i % 7}\n" for i in range(number))
        Path("list.csv").write_text(f"path,patient\n{rows}")
        del rows
        tracemalloc.start()
        counts = run(model, "list.csv", overwrite=True, block_size=50)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert counts is not None
        assert counts["read"] == number
    # 1300 rows more, of a few hundred bytes each, would be over 500 kB.
    assert min(peaks[3:]) < min(peaks[1:3]) + 150_000, peaks
