"""How much a client may send and hold, and the refusal of what is more.

No size that a client tells is trusted: bytes are counted as they come.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

from allcls_jax.data import transforms
from allcls_jax.errors import InputError

MIB = 1 << 20
# Times the largest upload: what all together may take, and what one may unpack to.
MEMORY, UNPACKED = 4, 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is taken.

    Attributes:
      max_upload: bytes of one request.
      max_memory: bytes of all requests that are being answered, together.
      max_unpacked: bytes that the zips of one request unpack to.
      max_pixels: of one picture, by its header, before it is decoded.
      max_files: pictures of one request, also inside zips.
      max_requests: answered at the same time.
      max_kept: bytes of the pictures that are kept for the page.
      timeout: seconds that a request may take to arrive, and again to be answered.
    """

    max_upload: int = 256 * MIB
    max_memory: int = MEMORY * 256 * MIB
    max_unpacked: int = UNPACKED * 256 * MIB
    max_pixels: int = 25_000_000
    max_files: int = 1000
    max_requests: int = 64
    max_kept: int = 256 * MIB
    timeout: float = 300.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value <= 0:
                raise InputError(f"--{field.name}={value:g}: must be above 0")
        if self.max_pixels > transforms.MAX_PIXELS:
            raise InputError(
                f"--max_pixels={self.max_pixels}: must be at most "
                f"{transforms.MAX_PIXELS}, more is never decoded"
            )


class Refused(Exception):
    """A request that is not answered as asked.

    Attributes:
      status: of HTTP.
      what: is wrong.
      remedy: what the client can do.
      retry_after: seconds after which the same request may pass; None: never.
    """

    def __init__(
        self, status: int, what: str, remedy: str, *, retry_after: int | None = None
    ):
        super().__init__(what)
        self.status = status
        self.what = what
        self.remedy = remedy
        self.retry_after = retry_after


class Memory:
    """Counts the bytes of the requests that are being answered; one thread uses it."""

    def __init__(self, most: int):
        self._most = most
        self._held = 0

    @contextlib.contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """Gives what to call with a number of bytes; they are given back at the end."""
        own = 0

        def take(count: int) -> None:
            nonlocal own
            if self._held + count > self._most:
                raise busy("too many bytes are being worked on at the moment")
            self._held += count
            own += count

        try:
            yield take
        finally:
            self._held -= own


def busy(what: str) -> Refused:
    """Returns the refusal of what may pass a little later."""
    return Refused(503, what, "try again in a moment", retry_after=1)


def too_large(most: int) -> Refused:
    """Returns the refusal of a request that is longer than so many bytes."""
    return Refused(
        413,
        f"the upload is larger than {in_mib(most)}",
        "send fewer files at once, or start the server with a larger --max_upload",
    )


def check_pixels(data: bytes, *, name: str, limits: Limits) -> None:
    """Refuses a picture by its header, before anything of it is decoded.

    Raises:
      BadImage: if it is too large, or its header cannot be read.
    """
    number = transforms.num_pixels(data, name=name)
    if number > limits.max_pixels:
        raise transforms.BadImage(
            f"{name}: has {number:,} pixels, and at most {limits.max_pixels:,} are "
            "read; cut out the single cells first"
        )


def in_mib(count: int) -> str:
    """Returns a number of bytes as a person reads it."""
    return f"{count / MIB:,.0f} MiB" if count >= MIB else f"{count:,} bytes"
