"""Batches are shared and full; nobody waits for what is not there."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from allcls_jax.serving.web.batching import Batcher, Seen


class Counts:
    """A model whose probability is the picture's first grey level / 255."""

    batch_size = 4

    def __init__(self):
        self.batches: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.fails = False

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        self.go.wait()
        self.batches.append(len(images))
        if self.fails:
            raise RuntimeError("no memory")
        return images[:, 0, 0, 0] / 255


def picture(level: int) -> Seen:
    return Seen(np.full((2, 2, 3), level, np.uint8), level)


@pytest.fixture
def model() -> Counts:
    return Counts()


@pytest.fixture
def batcher(model: Counts) -> Iterator[Batcher]:
    made = Batcher(model, wait=5.0)
    made.start()
    yield made
    model.go.set()
    made.close()


def test_each_picture_gets_its_own_probability_from_full_batches(
    model: Counts, batcher: Batcher
):
    model.go.clear()
    futures = [batcher.submit(lambda at=at: picture(at)) for at in range(13)]
    time.sleep(0.2)  # all are read while the first batch is held up
    model.go.set()
    found = [future.result(10) for future in futures]
    assert [seen.rest for seen, _ in found] == list(range(13))
    np.testing.assert_allclose([p for _, p in found], np.arange(13) / 255)
    assert sum(model.batches) == 13
    assert model.batches[1:] in ([4, 4, 1], [4, 4, 2], [4, 4, 3], [4, 4, 4], [4, 4])


def test_a_lone_picture_does_not_wait(model: Counts, batcher: Batcher):
    begun = time.monotonic()
    batcher.submit(lambda: picture(9)).result(10)
    assert time.monotonic() - begun < 2.0  # of the five seconds that it may
    assert model.batches == [1]


def test_a_picture_waits_for_another_that_is_being_read(
    model: Counts, batcher: Batcher
):
    def slowly() -> Seen:
        time.sleep(0.2)
        return picture(2)

    futures = [batcher.submit(slowly), batcher.submit(lambda: picture(1))]
    assert [future.result(10)[0].rest for future in futures] == [2, 1]
    assert model.batches == [2]


def test_it_does_not_wait_for_longer_than_it_is_told(model: Counts):
    batcher = Batcher(model, wait=0.01)
    batcher.start()
    slow = threading.Event()

    def slowly() -> Seen:
        slow.wait(10)
        return picture(2)

    late = batcher.submit(slowly)
    batcher.submit(lambda: picture(1)).result(5)
    assert model.batches == [1]
    slow.set()
    late.result(5)
    batcher.close()
    assert model.batches == [1, 1]


def test_what_cannot_be_read_raises_its_reason_and_the_rest_goes_on(batcher: Batcher):
    def broken() -> Seen:
        raise ValueError("not a picture")

    bad, good = batcher.submit(broken), batcher.submit(lambda: picture(5))
    assert good.result(10)[1] == pytest.approx(5 / 255)
    with pytest.raises(ValueError, match="not a picture"):
        bad.result(10)


def test_a_failed_batch_fails_its_pictures_alone(model: Counts, batcher: Batcher):
    model.fails = True
    with pytest.raises(RuntimeError, match="no memory"):
        batcher.submit(lambda: picture(1)).result(10)
    model.fails = False
    assert batcher.submit(lambda: picture(51)).result(10)[1] == pytest.approx(0.2)


def test_what_nobody_waits_for_is_not_computed(model: Counts, batcher: Batcher):
    model.go.clear()
    first = batcher.submit(lambda: picture(1))
    while batcher._queue or not first.running():
        time.sleep(0.001)
    dropped = [batcher.submit(lambda: picture(2)) for _ in range(3)]
    assert all(future.cancel() for future in dropped)
    last = batcher.submit(lambda: picture(3))
    model.go.set()
    assert first.result(10)[0].rest == 1
    assert last.result(10)[0].rest == 3
    assert model.batches == [1, 1]


def test_closing_ends_with_work_left(model: Counts):
    batcher = Batcher(model)
    batcher.start()
    model.go.clear()
    futures = [batcher.submit(lambda: picture(1)) for _ in range(20)]
    while not futures[0].running():
        time.sleep(0.001)
    threading.Timer(0.1, model.go.set).start()
    batcher.close()
    assert futures[0].result(1)[0].rest == 1
    assert not batcher._runner.is_alive()


def test_closing_leaves_nobody_waiting(model: Counts):
    batcher = Batcher(model)
    batcher.start()
    model.go.clear()

    def slowly() -> Seen:
        time.sleep(0.02)
        return picture(1)

    futures = [batcher.submit(slowly) for _ in range(20)]
    time.sleep(0.05)
    threading.Timer(0.1, model.go.set).start()
    batcher.close()
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError):
        batcher.submit(slowly)
    assert not batcher._unfinished


def test_a_model_that_answers_for_too_few_fails_those_alone(
    model: Counts, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        patched.setattr(model, "probabilities", lambda images: np.zeros(0))
        with pytest.raises(ValueError, match="zip"):
            batcher.submit(lambda: picture(1)).result(10)
    assert batcher.submit(lambda: picture(51)).result(10)[1] == pytest.approx(0.2)
