"""The interface on its wire: answers, refusals, limits, and who may ask."""

import io
import re
import struct
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np
import pytest
from PIL import Image

from allcls_jax import DISCLAIMER
from allcls_jax.config import SyntheticConfig
from allcls_jax.data import synthetic, transforms
from allcls_jax.serving.model import Model
from allcls_jax.serving.web import schema as web_schema
from allcls_jax.serving.web.app import create_app
from allcls_jax.serving.web.limits import Limits
from tests.serving.web_client import FORM, Answer, ask, form, predict, running

CONFIG = SyntheticConfig(num_images=6, num_patients=6)

ARRAYS = [synthetic.draw(CONFIG, index) for index in range(6)]
CELLS = [transforms.encode_png(array) for array in ARRAYS]

# What the process opens to write, while it is watched.
_watching = threading.Event()
_written: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watching.is_set():
        path, mode, flags = arguments
        if flags & 0o3 or (isinstance(mode, str) and set(mode) & set("wax+")):
            _written.append(str(path))


sys.addaudithook(_watch)


def fake_map(model: Model, image: np.ndarray, **settings: Any) -> bytes:
    """Stands for Grad-CAM; its own tests are elsewhere."""
    return transforms.encode_png(image) + repr(sorted(settings.items())).encode()


@pytest.fixture(scope="module")
def port(tiny_model: Model) -> Iterator[int]:
    with running(create_app(tiny_model, heat_map=fake_map)) as opened:
        yield opened


@pytest.fixture
def limited(tiny_model: Model) -> Iterator[Callable[..., int]]:
    """Starts servers with other limits."""
    opened = []

    def start(names: tuple[str, ...] = (), loopback: bool = True, **limits: Any) -> int:
        app = create_app(
            tiny_model,
            limits=Limits(**limits),
            names=names,
            loopback=loopback,
            heat_map=fake_map,
        )
        server = running(app)
        opened.append(server)
        return server.__enter__()

    yield start
    for server in opened:
        server.__exit__(None, None, None)


def encoded(array: np.ndarray, kind: str, mode: str | None = None, **how: Any) -> bytes:
    picture = Image.fromarray(array)
    file = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(file, kind, **how)
    return file.getvalue()


def rows(answer: Answer) -> list[dict[str, Any]]:
    assert answer.status == 200, answer.body
    return answer.json["rows"]


def problem(answer: Answer, status: int) -> str:
    assert answer.status == status, answer.body
    assert set(answer.json) == {"error", "remedy"}
    assert all(answer.json.values())
    return answer.json["error"]


def test_rows_are_what_the_model_says(port: int, tiny_model: Model):
    names = [f"cell_{at}.png" for at in range(6)]
    answer = predict(port, list(zip(names, CELLS, strict=True)))
    read = [tiny_model.read(data, name="x") for data in CELLS]
    expected = tiny_model.probabilities(np.stack([cell.image for cell in read]))
    for name, cell, p, row in zip(names, read, expected, rows(answer), strict=True):
        told = tiny_model.prediction(name, cell, p, threshold=0.5).to_dict()
        assert row.pop("id")
        assert row.pop("probability") == pytest.approx(told.pop("probability"))
        assert row.pop("uncertainty") == pytest.approx(told.pop("uncertainty"))
        assert row == told
    assert answer.json["disclaimer"] == DISCLAIMER
    assert answer.json["notes"] == list(tiny_model.notes)
    assert answer.json["notes"]
    web_schema.Answer.model_validate(predict(port, [("a.png", CELLS[0])]).json)


def test_threshold_and_coverage_are_obeyed(port: int, tiny_model: Model):
    files = [(f"{at}.png", data) for at, data in enumerate(CELLS)]
    values = [row["probability"] for row in rows(predict(port, files))]
    middle = float(np.median(values))
    answer = predict(port, files, {"threshold": str(middle), "coverage": "1"})
    decisions = [row["decision"] for row in rows(answer)]
    assert decisions == ["ALL" if p > middle else "HEM" for p in values]
    assert set(decisions) == {"ALL", "HEM"}
    assert not any(row["abstain"] for row in rows(answer))
    everywhere = rows(predict(port, files, {"coverage": "0.001"}))
    assert any(row["abstain"] for row in everywhere)
    named = predict(port, files, {"threshold": "youden"}).json
    assert named["threshold"] == tiny_model.thresholds["youden"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"threshold": "1.5"}, "threshold=1.5"),
        ({"threshold": "often"}, "threshold=often"),
        ({"coverage": "much"}, "coverage=much"),
        ({"keep": "maybe"}, "keep=maybe"),
    ],
)
def test_wrong_fields_are_told(port: int, fields: dict[str, str], words: str):
    assert words in problem(predict(port, [("a.png", CELLS[0])], fields), 422)


def test_a_zip_gives_rows_for_its_pictures(port: int):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("slide 1/UID_H6_1_2_hem.png", CELLS[0])
        archive.writestr("broken.bmp", b"BM")
        archive.writestr("notes.txt", b"-")
    answer = predict(port, [("cells.zip", packed.getvalue()), ("b.png", CELLS[1])])
    first, broken, last = rows(answer)
    alone = rows(predict(port, [("a.png", CELLS[0])]))[0]
    assert first["image"] == "cells.zip!slide 1/UID_H6_1_2_hem.png"
    assert first["patient"] == "H6"
    assert first["probability"] == pytest.approx(alone["probability"])
    assert broken["error"]
    assert last["image"] == "b.png"
    assert answer.json["passed_over"] == ["cells.zip!notes.txt"]


def _header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and has no pixels."""
    fields = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"IEND"
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + fields
        + struct.pack(">I", zlib.crc32(fields))
        + struct.pack(">I", 0)
        + end
        + struct.pack(">I", zlib.crc32(end))
    )


def _animated(kind: str) -> bytes:
    return encoded(
        ARRAYS[0], kind, save_all=True, append_images=[Image.fromarray(ARRAYS[1])]
    )


BAD = {
    "empty.bmp": (lambda: b"", "the file is empty"),
    "text.bmp": (lambda: b"these are words", "not a picture"),
    "header.png": (lambda: _header(20_000, 20_000), "pixels"),
    "large.png": (
        lambda: encoded(np.zeros((6000, 6000), np.uint8), "PNG"),
        "has 36,000,000 pixels, and at most 25,000,000",
    ),
    "animated.gif": (lambda: _animated("GIF"), "not a picture"),
    "animated.tif": (lambda: _animated("TIFF"), "holds 2 pictures"),
    "truncated.bmp": (lambda: encoded(ARRAYS[0], "BMP")[:5000], "cannot be decoded"),
    "float.tif": (
        lambda: encoded(np.zeros((9, 9), np.float32), "TIFF"),
        "pixels of type",
    ),
}
GOOD = {
    "cmyk.jpg": lambda: encoded(ARRAYS[0], "JPEG", "CMYK", quality=100),
    "deep.png": lambda: encoded(ARRAYS[0][..., 0].astype(np.uint16) * 257, "PNG"),
    "alpha.png": lambda: encoded(ARRAYS[0], "PNG", "RGBA"),
    "one.png": lambda: encoded(ARRAYS[0][200:201, 200:201], "PNG"),
    "cell.tif": lambda: encoded(ARRAYS[0], "TIFF"),
}


def test_what_cannot_be_read_is_a_row_with_the_reason_and_the_rest_goes_on(port: int):
    files = [(name, make()) for name, (make, _) in BAD.items()]
    files += [(name, make()) for name, make in GOOD.items()]
    found = {row["image"]: row for row in rows(predict(port, files))}
    assert list(found) == [*BAD, *GOOD]
    for name, (_, words) in BAD.items():
        assert words in found[name]["error"]
        assert name not in found[name]["error"], "the name stands beside it"
        assert found[name]["probability"] is None
        assert found[name]["decision"] is None
    for name in GOOD:
        assert found[name]["error"] is None, name
        assert 0 <= found[name]["probability"] <= 1
    plain = rows(predict(port, [("a.png", CELLS[0])]))[0]["probability"]
    assert found["alpha.png"]["probability"] == pytest.approx(plain)
    assert found["cell.tif"]["probability"] == pytest.approx(plain)
    assert found["one.png"]["warnings"]


def test_names_are_shown_as_they_came_and_never_opened(port: int):
    names = ["../../etc/passwd", "<script>alert(1)</script>.png", "C:/x/y.png", "a b"]
    found = rows(predict(port, [(name, CELLS[0]) for name in names]))
    assert [row["image"] for row in found] == names
    assert all(row["error"] is None for row in found)


def test_nothing_is_written_to_a_disk(port: int):
    _written.clear()
    _watching.set()
    try:
        with tempfile.SpooledTemporaryFile(max_size=10) as control:
            control.write(b"more than ten bytes")
        assert _written, "the watch sees what is written"
        _written.clear()
        large = encoded(ARRAYS[0], "BMP") * 6  # more than others hold in memory
        found = rows(predict(port, [("a.bmp", large), ("b.png", CELLS[0])]))
        assert found[0]["error"] is None
        ask(port, "/api/v1/explain", form([("a.bmp", large)]), content_type=FORM)
    finally:
        _watching.clear()
    assert len(large) > 3_000_000
    assert _written == []


def test_csv_is_given_where_it_is_asked_for(port: int, tiny_model: Model):
    files = [("=1+1.png", CELLS[0]), ("bad;=1.bmp", b"-")]
    answer = ask(
        port, "/api/v1/predict", form(files), content_type=FORM, accept="text/csv"
    )
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    heading, first, second = answer.body.decode().splitlines()
    assert heading.replace('"', "") == (
        "image,patient,probability,decision,uncertainty,abstain,warnings,error,"
        "threshold,model_sha256,notes,disclaimer"
    )
    assert first.startswith('"\'=1+1.png","",0.')
    assert second.startswith('"bad;=1.bmp","","","","","","",')
    for line in (first, second):
        assert DISCLAIMER in line
        assert tiny_model.notes[0] in line


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", FORM, 400),
        (form([]), FORM, 400),
        (form([("", b"")]), FORM, 400),
        (b"{}", "application/json", 415),
        (form([("a.png", b"1")])[:-9], FORM, 400),
    ],
)
def test_an_empty_or_broken_upload_is_refused(
    port: int, body: bytes, kind: str, status: int
):
    problem(ask(port, "/api/v1/predict", body, "POST", content_type=kind), status)


def test_a_heat_map_is_drawn_of_one_picture(port: int, tiny_model: Model):
    image = transforms.encode_png(tiny_model.read(CELLS[0], name="x").image)

    def explain(*files: tuple[str, bytes], **fields: str) -> Answer:
        body = form(files, **fields)
        return ask(port, "/api/v1/explain", body, content_type=FORM)

    def drawn(answer: Answer) -> bytes:
        """What was drawn, without the label that is put into it."""
        text = Image.open(io.BytesIO(answer.body)).info["Disclaimer"]
        assert text.startswith(DISCLAIMER)
        assert text.endswith(tiny_model.notes[-1])
        label = answer.body.index(b"iTXtDisclaimer") - 4
        (length,) = struct.unpack(">I", answer.body[label : label + 4])
        return answer.body[:label] + answer.body[label + 12 + length :]

    plain = explain(("a.png", CELLS[0]))
    assert plain.headers["content-type"] == "image/png"
    usual = [("block", None), ("method", "gradcam"), ("threshold", 0.5)]
    assert drawn(plain) == image + repr(usual).encode()
    other = explain(("a.png", CELLS[0]), method="gradcam++", block="3", threshold="0.2")
    asked = [("block", 3), ("method", "gradcam++"), ("threshold", 0.2)]
    assert drawn(other) == image + repr(asked).encode()
    problem(explain(("a.png", CELLS[0]), method="occlusion"), 422)
    problem(explain(("a.png", CELLS[0]), block="9"), 422)
    assert "not a picture" in problem(explain(("a.bmp", b"text")), 422)
    problem(explain(("a.png", CELLS[0]), ("b.png", CELLS[1])), 400)


def test_pictures_are_kept_if_asked_until_they_are_forgotten(
    port: int, tiny_model: Model
):
    kept, other = (
        rows(predict(port, [("a.png", CELLS[0])], {"keep": keep}))[0]["id"]
        for keep in ("true", "false")
    )
    picture = ask(port, f"/api/v1/cells/{kept}")
    assert picture.headers["content-type"] == "image/png"
    expected = tiny_model.read(CELLS[0], name="x").image
    np.testing.assert_array_equal(transforms.decode_png(picture.body), expected)
    drawn = ask(port, f"/api/v1/cells/{kept}/heat_map?threshold=0.3").body
    assert drawn.endswith(b"('threshold', 0.3)]")
    problem(ask(port, f"/api/v1/cells/{other}"), 404)
    problem(ask(port, f"/api/v1/cells/{other}/heat_map"), 404)
    problem(ask(port, "/api/v1/cells/..%2f..%2fetc%2fpasswd"), 404)
    body = f'{{"ids": ["{kept}", "unknown"]}}'.encode()
    forgotten = ask(port, "/api/v1/forget", body, content_type="application/json")
    assert forgotten.json == {"forgotten": 1}
    problem(ask(port, f"/api/v1/cells/{kept}"), 404)


def test_the_oldest_pictures_make_room_for_new_ones(limited: Callable[..., int]):
    size = 1_200  # of a picture of the tiny network, about
    port = limited(max_kept=3 * size)
    ids = [
        rows(predict(port, [("a.png", data)], {"keep": "true"}))[0]["id"]
        for data in CELLS
    ]
    kept = [ask(port, f"/api/v1/cells/{one}").status for one in ids]
    assert kept == sorted(kept, reverse=True), "the newest are the ones kept"
    assert kept[0] == 404
    assert kept[-1] == 200


def test_decisions_at_another_threshold(port: int, tiny_model: Model):
    def decide(body: bytes) -> Answer:
        return ask(port, "/api/v1/decide", body, content_type="application/json")

    answer = decide(b'{"probabilities": [0.2, 0.5, 0.9], "threshold": 0.4}').json
    assert [row["decision"] for row in answer["rows"]] == ["HEM", "ALL", "ALL"]
    assert answer["rows"][1]["uncertainty"] == 1
    assert answer["disclaimer"] == DISCLAIMER
    assert answer["notes"] == list(tiny_model.notes)
    named = decide(b'{"probabilities": [], "threshold": "youden"}').json
    assert named["threshold"] == tiny_model.thresholds["youden"]
    problem(decide(b'{"probabilities": [0.2], "threshold": 2}'), 422)
    problem(decide(b'{"probabilities": [1.2]}'), 422)
    problem(decide(b'{"probabilities": ["x"]}'), 422)
    problem(decide(b"no json"), 422)


def test_the_model_tells_of_itself(port: int, tiny_model: Model):
    found = ask(port, "/api/v1/model").json
    web_schema.About.model_validate(found)
    assert found["labels"] == ["HEM", "ALL"]
    assert found["thresholds"] == tiny_model.thresholds
    assert found["model_sha256"] == tiny_model.sha256
    assert found["notes"] == list(tiny_model.notes)
    assert found["disclaimer"] == DISCLAIMER
    assert found["domain"]["area"]
    assert found["limits"]["max_files"] == 1000
    assert ask(port, "/healthz").json == {"status": "ok"}


def test_the_interface_describes_itself_with_examples(port: int):
    found = ask(port, "/api/v1/openapi.json").json
    assert set(found["paths"]) >= {
        "/api/v1/predict",
        "/api/v1/model",
        "/api/v1/explain",
        "/healthz",
    }
    example = found["components"]["schemas"]["Answer"]["examples"][0]
    web_schema.Answer.model_validate(example)
    assert DISCLAIMER in found["info"]["description"]
    sent = found["paths"]["/api/v1/predict"]["post"]["requestBody"]["content"]
    assert "files" in sent["multipart/form-data"]["schema"]["properties"]


def test_no_page_names_another_origin(port: int):
    for path in ("/", "/app.js", "/cells.js", "/style.css", "/docs", "/docs/docs.js"):
        answer = ask(port, path)
        assert answer.status == 200, path
        urls = set(re.findall(rb"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", answer.body))
        assert urls <= {b"http://www.w3.org/2000/svg"}, path
        assert answer.headers["x-content-type-options"] == "nosniff"
    docs = ask(port, "/docs").body.decode()
    for script in re.findall(r'(?:src|href)="([^"]+)"', docs):
        assert ask(port, script).status == 200, script
    policy = ask(port, "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


@pytest.mark.parametrize("path", ["/../serve.py", "/static/..%2f..", "/nothing"])
def test_there_is_nothing_else(port: int, path: str):
    problem(ask(port, path), 404)
    wrong = ask(port, "/api/v1/predict")
    problem(wrong, 405)
    assert wrong.headers["allow"] == "POST"


def test_a_long_upload_is_refused_by_its_header_and_by_its_bytes(
    limited: Callable[..., int],
):
    port = limited(max_upload=10_000)
    body = form([("a.bmp", bytes(20_000))])
    refused = ask(port, "/api/v1/predict", body, content_type=FORM)
    assert "larger than" in problem(refused, 413)
    # Without a length the bytes are counted.
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    refused = ask(
        *(port, "/api/v1/predict", chunks),
        content_type=FORM,
        transfer_encoding="chunked",
    )
    assert "larger than" in problem(refused, 413)
    assert rows(predict(port, [("a.bmp", b"-")]))[0]["error"]


def test_limits_of_pixels_and_files(limited: Callable[..., int]):
    port = limited(max_pixels=100_000, max_files=2)
    found = rows(predict(port, [("a.png", CELLS[0])]))[0]
    assert "has 202,500 pixels, and at most 100,000" in found["error"]
    assert "3 pictures" in problem(predict(port, [("a", b"-")] * 3), 413)


class Slow:
    """A model that computes when it is told to."""

    def __init__(self, model: Model):
        self._model = model
        self.go = threading.Event()
        self.begun = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        self.begun.set()
        self.go.wait(20)
        return self._model.probabilities(images)


def test_more_requests_than_fit_are_sent_away_for_a_moment(tiny_model: Model):
    slow: Any = Slow(tiny_model)
    app = create_app(slow, limits=Limits(max_requests=3), heat_map=fake_map)
    with running(app) as port, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(predict, port, [("a.png", CELLS[0])]) for _ in range(8)]
        for _, _ in zip(range(5), as_completed(asked, timeout=20), strict=False):
            pass  # those sent away
        assert ask(port, "/healthz").status == 200, "it still answers"
        slow.go.set()
        answers = [one.result() for one in asked]
    assert sorted(answer.status for answer in answers) == [200] * 3 + [503] * 5
    for answer in answers:
        if answer.status == 503:
            assert int(answer.headers["retry-after"]) >= 1
            problem(answer, 503)


def test_bytes_of_all_requests_together_are_limited(tiny_model: Model):
    slow: Any = Slow(tiny_model)
    limits = Limits(max_memory=int(1.5 * len(CELLS[0])))
    app = create_app(slow, limits=limits, heat_map=fake_map)
    with running(app) as port, ThreadPoolExecutor() as pool:
        first = pool.submit(predict, port, [("a.png", CELLS[0])])
        assert slow.begun.wait(20)
        assert "bytes" in problem(predict(port, [("a.png", CELLS[0])]), 503)
        slow.go.set()
        assert first.result().status == 200
        assert predict(port, [("a.png", CELLS[0])]).status == 200


def test_an_answer_that_takes_too_long_is_refused(tiny_model: Model):
    slow: Any = Slow(tiny_model)
    app = create_app(slow, limits=Limits(timeout=0.3), heat_map=fake_map)
    with running(app) as port:
        late = predict(port, [("a.png", CELLS[0])] * 3)
        assert "longer than 0.3 seconds" in problem(late, 503)
        slow.go.set()
        assert predict(port, [("a.png", CELLS[0])]).status == 200


def test_an_upload_that_never_ends_is_given_up(limited: Callable[..., int]):
    port = limited(timeout=0.3)
    answer = ask(
        *(port, "/api/v1/predict", form([("a.png", CELLS[0])])[:-5]),
        content_type=FORM,
        content_length="9999999",
    )
    assert "took longer than" in problem(answer, 408)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "", "192.0.2.7", "localhost.evil.com"]
)
def test_a_loopback_server_is_asked_for_under_its_own_names_only(port: int, host: str):
    assert "not called" in problem(ask(port, "/api/v1/model", host=host), 421)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "[::1]:80"]
)
def test_loopback_names_are_its_own(port: int, host: str):
    assert ask(port, "/api/v1/model", host=host).status == 200


def test_a_server_for_others_is_asked_for_by_address_or_given_name(
    limited: Callable[..., int],
):
    port = limited(loopback=False, names=("cells.lab",))
    for host in ("192.0.2.7:8000", "[2001:db8::1]", "Cells.Lab:8000", "localhost"):
        assert ask(port, "/healthz", host=host).status == 200, host
    problem(ask(port, "/healthz", host="evil.example"), 421)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_pages_of_other_origins_cannot_post(port: int, headers: dict[str, str]):
    body = form([("a.png", CELLS[0])])
    answer = ask(port, "/api/v1/predict", body, content_type=FORM, **headers)
    assert "another origin" in problem(answer, 403)
    allowed = ask(
        *(port, "/api/v1/predict", body),
        content_type=FORM,
        origin=f"http://127.0.0.1:{port}",
        sec_fetch_site="same-origin",
    )
    assert allowed.status == 200


def test_no_other_origin_may_read(port: int):
    for method in ("GET", "OPTIONS"):
        answer = ask(
            *(port, "/api/v1/model", None, method),
            origin="http://evil.example",
            access_control_request_method="POST",
        )
        assert not [name for name in answer.headers if "access-control" in name]


def test_a_failure_of_ours_is_told_without_its_insides(
    tiny_model: Model, capsys: pytest.CaptureFixture[str]
):
    def broken(*_: Any, **__: Any) -> bytes:
        raise RuntimeError("a secret")

    with running(create_app(tiny_model, heat_map=broken)) as port:
        body = form([("a.png", CELLS[0])])
        answer = ask(port, "/api/v1/explain", body, content_type=FORM)
        assert "RuntimeError" in problem(answer, 500)
        assert "secret" not in answer.body.decode()
        assert answer.headers["content-security-policy"]
    assert "a secret" in capsys.readouterr().err, "the terminal has it"


def test_many_clients_get_their_own_answers(port: int):
    alone = [rows(predict(port, [("a.png", data)]))[0]["probability"] for data in CELLS]
    with ThreadPoolExecutor(16) as pool:
        asked = [
            pool.submit(predict, port, [(f"{at}.png", CELLS[at % 6])])
            for at in range(48)
        ]
        for at, future in enumerate(asked):
            found = rows(future.result())[0]
            assert found["image"] == f"{at}.png"
            assert found["probability"] == pytest.approx(alone[at % 6], abs=1e-6)
