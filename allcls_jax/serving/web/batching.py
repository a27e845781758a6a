"""Pictures of concurrent requests, read in threads and computed in shared batches.

One thread computes. A lone picture is computed at once; while others are being read it
waits for them, but only for moments. What a client no longer waits for is dropped.
"""

import collections
import dataclasses
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

# Seconds that a picture waits for those that are being read.
WAIT = 0.01


class Computes(Protocol):
    """What of a model is needed here."""

    batch_size: int

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Returns P(ALL), (n,), of images (n, s, s, 3) uint8."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A picture that was read.

    Attributes:
      image: (s, s, 3) uint8, the network's input.
      rest: whatever the reader wants to have beside the probability.
    """

    image: np.ndarray
    rest: Any


class Batcher:
    """Gives each picture its probability."""

    def __init__(self, model: Computes, *, wait: float = WAIT):
        """Starts nothing yet.

        Args:
          model: computes.
          wait: seconds that a picture waits at most for those being read.
        """
        self._model = model
        self._wait = wait
        self._changed = threading.Condition()
        self._queue: collections.deque[tuple[Seen, Future]] = collections.deque()
        self._unfinished: set[Future] = set()
        self._coming = 0
        self._open = False
        self._readers = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "read")
        self._runner = threading.Thread(target=self._run, name="compute", daemon=True)

    def start(self) -> None:
        """Begins to compute."""
        self._open = True
        self._runner.start()

    def close(self) -> None:
        """Ends after the batch being computed; what still waits is cancelled."""
        self._readers.shutdown(wait=True, cancel_futures=True)
        with self._changed:
            self._open = False
            self._changed.notify_all()
        self._runner.join()
        # Also of what was never read, or was read after the last batch.
        for future in tuple(self._unfinished):
            future.cancel()
        self._queue.clear()

    def submit(self, read: Callable[[], Seen]) -> "Future[tuple[Seen, float]]":
        """Returns what will have the picture and its calibrated P(ALL).

        Args:
          read: is called in a thread; what it raises, the future raises.
        """
        future: Future[tuple[Seen, float]] = Future()
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        with self._changed:
            self._coming += 1
        try:
            self._readers.submit(self._read, read, future)
        except BaseException:
            with self._changed:
                self._coming -= 1
            future.cancel()
            raise
        return future

    def _read(self, read: Callable[[], Seen], future: Future) -> None:
        seen = error = None
        if not future.cancelled():
            try:
                seen = read()
            except BaseException as caught:
                error = caught
        with self._changed:
            self._coming -= 1
            if seen is not None:
                self._queue.append((seen, future))
            self._changed.notify()
        if error is not None and future.set_running_or_notify_cancel():
            future.set_exception(error)

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            batch = [
                (seen, future)
                for seen, future in batch
                if future.set_running_or_notify_cancel()
            ]
            if not batch:
                continue
            try:
                images = np.stack([seen.image for seen, _ in batch])
                found = self._model.probabilities(images).tolist()
                results = list(zip(batch, found, strict=True))
            except BaseException as error:
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (seen, future), probability in results:
                future.set_result((seen, probability))

    def _next(self) -> list[tuple[Seen, Future]] | None:
        """Returns what to compute next; None: nothing more, ever."""
        size = self._model.batch_size
        with self._changed:
            while self._open and not self._queue:
                self._changed.wait()
            until = time.monotonic() + self._wait
            while self._open and self._coming and len(self._queue) < size:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            if not self._open:
                return None
            return [self._queue.popleft() for _ in range(min(size, len(self._queue)))]
