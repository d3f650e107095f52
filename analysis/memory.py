"""Results that are kept as long as what they were computed from, and no longer."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast
from weakref import WeakKeyDictionary

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def remembered(most: int) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Keep the last `most` results of a function, by its first argument's identity and the values of the others.

    They go when the first argument goes, a model or its statistics, which is never changed in place; so a
    result must not refer to it. All arguments are positional and hashable.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        memory: WeakKeyDictionary[Any, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()
        lock = threading.Lock()  # of the memory
        computing = threading.Lock()  # so that two who ask for the same wait for one computation

        def recall(owner: Any, rest: tuple[Any, ...]) -> tuple[Any, ...]:
            with lock:
                results = memory.setdefault(owner, {})
                if rest not in results:
                    return ()
                results[rest] = results.pop(rest)  # the last in line to go
                return (results[rest],)

        @functools.wraps(function)
        def wrapper(owner: Any, *rest: Any) -> Any:
            for known in recall(owner, rest):
                return known
            with computing:
                for known in recall(owner, rest):
                    return known
                made = function(owner, *rest)  # type: ignore[call-arg]
                with lock:
                    results = memory[owner]
                    if len(results) >= most:
                        results.pop(next(iter(results)))  # the one not asked for the longest
                    results[rest] = made
                return made

        return cast(Callable[Arguments, Result], wrapper)

    return decorate
