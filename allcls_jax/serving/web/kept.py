"""Pictures that the page wants to see again: in memory, a bounded number of bytes."""

import collections
from collections.abc import Sequence

from allcls_jax.serving.web.limits import Refused


class Kept:
    """Files by names that cannot be guessed; the oldest make room for new ones."""

    def __init__(self, most: int):
        """Keeps at most so many bytes."""
        self._most = most
        self._files: collections.OrderedDict[str, bytes] = collections.OrderedDict()
        self._bytes = 0

    def put(self, name: str, data: bytes) -> None:
        """Keeps a file; others may be forgotten for it."""
        self._files[name] = data
        self._bytes += len(data)
        while self._bytes > self._most:
            _, oldest = self._files.popitem(last=False)
            self._bytes -= len(oldest)

    def get(self, name: str) -> bytes:
        """Returns a file.

        Raises:
          Refused: if it was not kept, or has been forgotten.
        """
        if name not in self._files:
            raise Refused(
                404,
                "this picture is not in memory, or not any more",
                "upload it again, with keep=true",
            )
        return self._files[name]

    def forget(self, names: Sequence[str]) -> int:
        """Forgets files; returns how many of them there were."""
        found = [self._files.pop(name) for name in names if name in self._files]
        self._bytes -= sum(map(len, found))
        return len(found)

    def clear(self) -> None:
        """Forgets all files."""
        self.forget(tuple(self._files))
