"""Forms and zips: what is read of them, and all that is refused."""

import asyncio
import io
import struct
import zipfile
from collections.abc import AsyncIterator

import pytest

from allcls_jax.errors import InputError
from allcls_jax.serving.web.forms import File, Form, read_form, shown_name
from allcls_jax.serving.web.limits import Limits, Memory, Refused
from allcls_jax.serving.web.zips import uploads_of
from tests.serving.web_client import BOUNDARY, FORM, form


def read(
    body: bytes, limits: Limits | None = None, *, kind: str = FORM, step: int = 7
) -> Form:
    """Reads a form that comes in pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), step):
            yield body[start : start + step]

    return asyncio.run(
        read_form(pieces(), kind, limits or Limits(), lambda count: None)
    )


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return packed.getvalue()


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_a_form_is_read_whole_however_it_is_cut(step: int):
    data = bytes(range(256)) + b"\r\n--a-boundar"
    sent = form([("one.bmp", data), ("two.bmp", b"")], threshold="0.4", keep="true")
    found = read(sent, step=step)
    assert found.files == [File("one.bmp", data), File("two.bmp", b"")]
    assert found.fields == {"threshold": "0.4", "keep": "true"}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "../../etc/passwd"),
        ("<script>alert(1)</script>.bmp", "<script>alert(1)</script>.bmp"),
        ("Zelle ä.png", "Zelle ä.png"),
        ("a\x00b\x1b[31m\u202egnp.bmp", "a b [31m gnp.bmp"),
        ("x" * 5000, "x" * 240),
        ("", ""),
    ],
)
def test_a_name_is_one_short_line_to_be_shown(name: str, shown: str):
    assert shown_name(name.encode()) == shown


def test_a_name_that_is_not_utf_8_can_be_shown():
    assert shown_name(b"\xff\xfe.bmp") == "\ufffd\ufffd.bmp"


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (form([("a.bmp", b"1")])[:-8], 400, "ends too early"),
        (b"no form at all", 400, "cannot be read"),
        (f"--{BOUNDARY}\r\nX: y\r\n\r\n1\r\n--{BOUNDARY}--".encode(), 400, "no name"),
        (form([], **{f"f{i}": "1" for i in range(30)}), 400, "more than 16 fields"),
        (form([], threshold="1" * 5000), 400, "too long"),
        (form([("a", b"1")] * 22), 413, "more than 5 files"),
        # Empty parts cost their time too.
        (form([("", b"")] * 22), 413, "more than 5 files"),
    ],
)
def test_a_broken_or_long_form_is_refused(body: bytes, status: int, reason: str):
    limits = Limits(max_files=5)
    with pytest.raises(Refused, match=reason) as refused:
        read(body, limits)
    assert refused.value.status == status
    assert refused.value.remedy


@pytest.mark.parametrize("kind", ["", "application/json", "multipart/form-data"])
def test_what_is_no_form_is_refused(kind: str):
    with pytest.raises(Refused, match="of type") as refused:
        read(b"{}", kind=kind)
    assert refused.value.status == 415


def test_the_pictures_of_a_zip_are_read_one_by_one_and_others_named():
    packed = zipped(
        ("slide/b.bmp", b"B"),
        ("slide/", b""),
        ("a.PNG", b"A"),
        ("notes.txt", b"-"),
        ("__MACOSX/._a.PNG", b"-"),
        (".hidden.bmp", b"-"),
        ("../up.bmp", b"U"),
    )
    given = [File("x.bmp", b"X"), File("more.zip", packed)]
    uploads, passed_over = uploads_of(given, Limits())
    assert {upload.name: upload.read() for upload in uploads} == {
        "x.bmp": b"X",
        "more.zip!slide/b.bmp": b"B",
        "more.zip!a.PNG": b"A",
        "more.zip!../up.bmp": b"U",
    }
    assert passed_over == ["more.zip!notes.txt"]


def test_a_zip_is_known_by_its_content_too():
    uploads, _ = uploads_of([File("download", zipped(("a.bmp", b"A")))], Limits())
    assert [upload.name for upload in uploads] == ["download!a.bmp"]


def reason(given: File, limits: Limits | None = None, *, at: int = 0) -> str:
    uploads, _ = uploads_of([given], limits or Limits())
    with pytest.raises(InputError) as error:
        uploads[at].read()
    return str(error.value)


def test_a_zip_that_cannot_be_opened_is_a_picture_with_a_reason():
    assert "cannot be opened" in reason(File("a.zip", b"text"))
    whole = zipped(("a.bmp", b"A" * 1000))
    assert "cannot be opened" in reason(File("a.zip", whole[:-30]))
    assert "has no BMP" in reason(File("a.zip", zipped(("a.txt", b"A"))))


def test_a_damaged_or_locked_picture_in_a_zip_leaves_the_others():
    whole = bytearray(
        zipped(("a.bmp", b"A" * 99), ("b.bmp", b"B" * 9), method=zipfile.ZIP_STORED)
    )
    whole[50] ^= 1  # of a's content
    uploads, _ = uploads_of([File("a.zip", bytes(whole))], Limits())
    with pytest.raises(InputError, match="Bad CRC"):
        uploads[0].read()
    assert uploads[1].read() == b"B" * 9

    locked = bytearray(zipped(("a.bmp", b"A"), method=zipfile.ZIP_STORED))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.find(mark) + offset] |= 1
    assert "without a password" in reason(File("a.zip", bytes(locked)))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_without_bounded_steps_are_refused(method: int):
    packed = zipped(("a.bmp", b"A" * 99), method=method)
    assert "deflate" in reason(File("a.zip", packed))


def test_a_zip_bomb_is_counted_while_it_is_unpacked():
    bomb = zipped(("a.bmp", bytes(3_000_000)), ("b.bmp", bytes(3_000_000)))
    assert len(bomb) < 10_000
    limits = Limits(max_unpacked=4_000_000)
    uploads, _ = uploads_of([File("a.zip", bomb)], limits)
    assert len(uploads[0].read()) == 3_000_000
    with pytest.raises(InputError, match="unpack to more than 4 MiB"):
        uploads[1].read()
    # One picture may unpack to no more than one may have that is sent as it is.
    limits = Limits(max_upload=1_000_000)
    assert "unpacks to more than" in reason(File("a.zip", bomb), limits)


def test_a_zip_that_lies_about_sizes_gains_nothing():
    bomb = bytearray(zipped(("a.bmp", bytes(3_000_000))))
    central = bomb.find(b"PK\x01\x02")
    bomb[central + 24 : central + 28] = struct.pack("<I", 10)
    found = reason(File("a.zip", bytes(bomb)), Limits(max_unpacked=1000))
    assert "cannot be unpacked" in found


def test_entries_are_counted_before_they_are_listed():
    many = zipped(*((f"{i}.txt", b"") for i in range(50)), ("a.bmp", b"A"))
    assert "more than 40 entries" in reason(File("a.zip", many), Limits(max_files=10))


def test_too_many_pictures_are_refused_in_zips_too():
    packed = zipped(*((f"{i}.bmp", b"") for i in range(4)))
    given = [File("x.bmp", b"X"), File("a.zip", packed)]
    assert len(uploads_of(given, Limits(max_files=5))[0]) == 5
    with pytest.raises(Refused, match="5 pictures, and at most 4"):
        uploads_of(given, Limits(max_files=4))


def test_no_pictures_are_refused():
    with pytest.raises(Refused, match="no pictures"):
        uploads_of([], Limits())


def test_memory_is_given_back_and_never_exceeded():
    memory = Memory(100)
    with memory.hold() as take:
        take(60)
        with memory.hold() as other:
            other(40)
            with pytest.raises(Refused) as refused:
                other(1)
            assert refused.value.status == 503
            assert refused.value.retry_after
        take(40)
    with memory.hold() as take:
        take(100)


def test_limits_are_above_zero():
    with pytest.raises(InputError, match="max_files=0"):
        Limits(max_files=0)
    with pytest.raises(InputError, match="max_pixels"):
        Limits(max_pixels=10**9)
