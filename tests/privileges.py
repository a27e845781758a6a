"""Permissions that hold for the superuser too, as CI often is one."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

import pytest

# Linux' capability.h: version 3 of the call has two sets of 32 capabilities, of which
# these two let their owner read and write whatever the permissions of a file say.
_VERSION = 0x20080522
_OVERRIDE, _READ_SEARCH = 1 << 1, 1 << 2


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Set(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")
    )


@contextlib.contextmanager
def permissions_hold() -> Iterator[None]:
    """In the block, this thread and those it starts are bound by permissions."""
    if os.geteuid() != 0:
        yield
        return
    if not sys.platform.startswith("linux"):
        pytest.skip("the superuser may do everything here")
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(_VERSION, 0), (_Set * 2)()

    def call(function: str) -> None:
        if getattr(libc, function)(ctypes.byref(header), sets) != 0:
            raise OSError(ctypes.get_errno(), function)

    call("capget")
    usual = sets[0].effective
    sets[0].effective = usual & ~(_OVERRIDE | _READ_SEARCH)
    call("capset")
    try:
        yield
    finally:
        sets[0].effective = usual
        call("capset")
