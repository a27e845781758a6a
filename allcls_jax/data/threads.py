"""The same for many, in threads, with results in order; a stop is a stop."""

import contextlib
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
    number = min(os.cpu_count() or 1, most or 1 << 30)
    with ThreadPoolExecutor(number, initializer=initializer) as pool:
        try:
            yield pool.map(function, items)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
