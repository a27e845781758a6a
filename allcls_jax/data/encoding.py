"""Cells turned into what a pack stores of each: one PNG, or what is wrong with it."""

import functools
import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from allcls_jax.data import transforms
from allcls_jax.data.cells import CellFile

Encoded = tuple[bytes, str, int] | str


def encode(cell: CellFile, *, size: int, crop: int | None) -> Encoded:
    """Returns (PNG, sha256 of the file, area of the cell), or what is wrong with it.

    Args:
      cell: what to read.
      size: height and width of the PNG, pixels.
      crop: centre square cut out before resizing, pixels; None keeps the whole.
    """
    try:
        data = cell.source.read()
        image, area = transforms.prepare(
            data, name=cell.source.name, max_side=cell.max_side, crop=crop, size=size
        )
    except transforms.BadImage as error:
        return str(error)
    except OSError as error:
        return f"{cell.source.name}: cannot be read ({error})"
    return transforms.encode_png(image), hashlib.sha256(data).hexdigest(), area


def encode_all(
    cells: Sequence[CellFile], *, size: int, crop: int | None
) -> Iterator[tuple[CellFile, Encoded]]:
    """Yields (cell, what `encode` gives) in order, some being encoded ahead."""
    threads = os.cpu_count() or 1
    function = functools.partial(encode, size=size, crop=crop)
    pending: deque[tuple[CellFile, Future[Encoded]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for cell in cells:
            pending.append((cell, pool.submit(function, cell)))
            if len(pending) >= 8 * threads:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
