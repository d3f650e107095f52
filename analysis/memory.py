"""Results that are kept as long as what they were computed from, and no longer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast
from weakref import WeakKeyDictionary

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

MOST = 256


def remembered(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Keep the last results of `function`, by its first argument's identity and the values of the others.

    They go when the first argument goes, a model or its statistics, which is never changed in place; so a
    result must not refer to it. All arguments are positional and hashable.
    """
    memory: WeakKeyDictionary[Any, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()

    @functools.wraps(function)
    def wrapper(owner: Any, *rest: Any) -> Any:
        results = memory.setdefault(owner, {})
        if rest not in results:
            if len(results) >= MOST:
                results.pop(next(iter(results)), None)  # the oldest
            results[rest] = function(owner, *rest)  # type: ignore[call-arg]
        return results[rest]

    return cast(Callable[Arguments, Result], wrapper)
