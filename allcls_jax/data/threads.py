"""The same for many, in threads, with results in order; a stop is a stop."""

import collections
import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@contextlib.contextmanager
def in_threads(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    most: int | None = None,
    initializer: Callable[[], object] | None = None,
) -> Iterator[Iterator[_Result]]:
    """Gives the results in the order of the items, as they come.

    When the block is left by an exception, such as Ctrl-C, what has not begun is
    dropped: otherwise the process would first work off all that is waiting.

    Args:
      function: called in the threads.
      items: all are taken at once.
      most: number of threads, at most; None: of the machine.
      initializer: called in each thread first.
    """
    with _pool(most, initializer) as pool:
        yield pool.map(function, items)


@contextlib.contextmanager
def ahead_in_threads(
    function: Callable[[_Item], _Result], items: Iterable[_Item], *, ahead: int
) -> Iterator[Iterator[_Result]]:
    """As `in_threads`, for more items than there is memory for.

    Args:
      function: called in the threads.
      items: taken in the calling thread, only so far as `ahead` says.
      ahead: how many results are computed, or wait, beyond the one last given.
    """
    with _pool(None, None) as pool:
        yield _results_ahead(pool, function, iter(items), ahead)


def _results_ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[_Item], _Result],
    items: Iterator[_Item],
    ahead: int,
) -> Iterator[_Result]:
    begun = collections.deque(
        pool.submit(function, item) for item in itertools.islice(items, ahead)
    )
    while begun:
        first = begun.popleft()
        for item in itertools.islice(items, 1):
            begun.append(pool.submit(function, item))
        yield first.result()


@contextlib.contextmanager
def _pool(
    most: int | None, initializer: Callable[[], object] | None
) -> Iterator[ThreadPoolExecutor]:
    number = min(os.cpu_count() or 1, most or 1 << 30)
    with ThreadPoolExecutor(number, initializer=initializer) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
