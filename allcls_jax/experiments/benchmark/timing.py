"""How time is taken: warmed up, to the end of the work, in turns with the peers."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from allcls_jax.experiments.benchmark.record import Figure

# Between one and the next: the threads of some peers keep spinning for a while.
_PAUSE = 0.25


def seconds(work: Callable[[], Any], *, times: int = 1) -> float:
    """Returns the seconds that a piece of work takes, its results being waited for.

    Args:
      work: to be done, already compiled; what it returns is computed when it ends.
      times: how often it is started before the last result is waited for, so that a
        device's queue is never empty; the seconds are of one.
    """
    begun = time.perf_counter()
    result = None
    for _ in range(times):
        result = work()
    jax.block_until_ready(result)
    return (time.perf_counter() - begun) / times


def in_turns(
    measures: Mapping[str, Callable[[], float]], *, repeats: int, pause: float = _PAUSE
) -> dict[str, list[float]]:
    """Returns measurements by name, taken in turns: a busy moment falls on all.

    Args:
      measures: each measures once and returns seconds; warmed up.
      repeats: how often each is called.
      pause: seconds before each call, where there are several.
    """
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            if len(measures) > 1:
                time.sleep(pause)
            found[name].append(measure())
    return found


def figure(
    taken: Sequence[float],
    *,
    count: float | None = None,
    times: int = 1,
    note: str = "",
) -> Figure:
    """Returns the median of measured seconds, their range, and how many there are.

    Args:
      taken: at least one.
      count: of what is done in that time, for a rate; None: the seconds themselves.
      times: how many are timed for each of those taken.
      note: what must be known of it.
    """
    values = [time if count is None else count / time for time in taken]
    return Figure(
        value=statistics.median(values),
        low=min(values),
        high=max(values),
        count=len(values) * times,
        note=note,
    )
