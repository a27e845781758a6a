import threading
import time

import pytest

from allcls_jax.data.threads import ahead_in_threads, in_threads


def test_results_come_in_the_order_of_the_items():
    def slow_at_first(item: int) -> int:
        time.sleep(0.05 * (item < 2))
        return item * item

    with in_threads(slow_at_first, range(20)) as results:
        assert list(results) == [item * item for item in range(20)]


def test_no_more_threads_than_asked_for_and_each_is_prepared():
    names, prepared = set(), []

    def note(_: int) -> None:
        time.sleep(0.01)
        names.add(threading.get_ident())

    with in_threads(
        note, range(12), most=1, initializer=lambda: prepared.append(1)
    ) as results:
        list(results)
    assert (len(names), len(prepared)) == (1, 1)


def test_what_has_not_begun_is_dropped_when_the_block_is_left():
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.02)
        return item

    def interrupted() -> None:
        with in_threads(work, range(200), most=2) as results:
            next(results)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(begun) < 50


def test_an_error_in_a_thread_is_raised_where_its_result_is_taken():
    def fail(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    with in_threads(fail, range(9)) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="three"):
            next(results)


@pytest.mark.parametrize("ahead", [1, 3, 50])
def test_items_are_taken_only_so_far_ahead(ahead: int):
    taken = []

    def items():
        for item in range(20):
            taken.append(item)
            yield item

    def slow_at_first(item: int) -> int:
        time.sleep(0.02 * (item < 2))
        return item * item

    with ahead_in_threads(slow_at_first, items(), ahead=ahead) as results:
        assert taken == []
        for item in range(20):
            assert next(results) == item * item
            assert len(taken) == min(20, item + 1 + ahead)
        assert list(results) == []


def test_items_that_wait_are_dropped_when_the_block_is_left():
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.02)
        return item

    def interrupted() -> None:
        with ahead_in_threads(work, range(10**9), ahead=200) as results:
            next(results)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(begun) < 50
