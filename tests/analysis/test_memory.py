"""Results are computed once, and forgotten with what they were computed from."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable

import pytest

from analysis.memory import remembered


class Owner:
    """Something results belong to."""


class Result:
    """Something one can tell apart and hold weakly."""


def counted(most: int = 256) -> tuple[Callable[..., Result], list[tuple[object, ...]]]:
    calls: list[tuple[object, ...]] = []

    @remembered(most)
    def compute(owner: Owner, *arguments: object) -> Result:
        """What is computed."""
        calls.append(arguments)
        return Result()

    return compute, calls


def test_the_same_arguments_are_computed_once() -> None:
    compute, calls = counted()
    owner, other = Owner(), Owner()
    first = compute(owner, "a", 1)
    assert compute(owner, "a", 1) is first
    assert compute(owner, "a", 2) is not first
    assert compute(other, "a", 1) is not first
    assert compute(owner, "a", 1) is first
    assert calls == [("a", 1), ("a", 2), ("a", 1)]


def test_functions_do_not_share_their_results() -> None:
    owner = Owner()
    assert counted()[0](owner) is not counted()[0](owner)


def test_results_go_with_their_owner() -> None:
    compute, _ = counted()
    owner, other = Owner(), Owner()
    gone, stays = weakref.ref(compute(owner, 1)), weakref.ref(compute(other, 1))
    gc.collect()
    assert gone() is not None  # while the owner lives
    ended = weakref.ref(owner)
    del owner
    gc.collect()
    assert ended() is None
    assert gone() is None
    assert stays() is not None


def test_the_oldest_results_make_room() -> None:
    compute, calls = counted(3)
    owner = Owner()
    kept = [weakref.ref(compute(owner, number)) for number in range(5)]
    gc.collect()
    assert [result() is not None for result in kept] == [False, False, True, True, True]
    for number in (4, 3, 2):
        compute(owner, number)
    assert len(calls) == 5
    compute(owner, 0)
    assert len(calls) == 6
    gc.collect()
    assert [result() is not None for result in kept] == [False, False, True, True, False]  # 4 was asked for first


def test_a_failure_is_not_remembered() -> None:
    failing = [True]

    @remembered(256)
    def compute(owner: Owner) -> str:
        if failing:
            raise ValueError("not yet")
        return "done"

    owner = Owner()
    with pytest.raises(ValueError, match="not yet"):
        compute(owner)
    failing.clear()
    assert compute(owner) == "done"


def test_the_name_and_words_of_the_function_stay() -> None:
    compute, _ = counted()
    assert (compute.__name__, compute.__doc__) == ("compute", "What is computed.")


def test_results_that_leave_while_others_read_them_do_no_harm() -> None:
    interval = sys.getswitchinterval()

    @remembered(2)
    def double(owner: Owner, number: int) -> int:
        return 2 * number

    owner, wrong = Owner(), []

    def ask() -> None:
        try:
            wrong.extend(n for i in range(10_000) if double(owner, n := i % 5) != 2 * n)
        except BaseException as error:
            wrong.append(error)  # type: ignore[arg-type]

    threads = [threading.Thread(target=ask) for _ in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
