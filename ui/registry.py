"""What the server keeps between requests: loaded models, their statistics, recent variants and references.

Everything here is shared by all visitors and looked up by value (model name, recipe, settings), so what
one visitor gets does not depend on what another does. Sessions hold only names and recipes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Generic, TypeVar

from qvd_core.errors import ModelError
from qvd_core.recipe import Recipe

if TYPE_CHECKING:
    from qvd_core.calibration.statistics import Statistics
    from qvd_core.models.loader import VideoModel
    from qvd_core.sampling import Clip, Settings
    from qvd_core.variant import Variant

Value = TypeVar("Value")


class Shelf(Generic[Value]):
    """The most recently used values, each made once even when several threads ask at the same time."""

    def __init__(self, size: int):
        self.size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._locks: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of `key`, made by `make` if it is not here."""
        with self._lock:
            own = self._locks.setdefault(key, threading.Lock())
        with own:
            with self._lock:
                if key in self._values:
                    self._values.move_to_end(key)
                    return self._values[key]
            value = make()
            self.put(key, value)
            return value

    def peek(self, key: Hashable) -> Value | None:
        """The value of `key` if it is here, without waiting for anybody who is making it."""
        with self._lock:
            return self._values.get(key)

    def put(self, key: Hashable, value: Value) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self.size:
                dropped, _ = self._values.popitem(last=False)
                self._locks.pop(dropped, None)


class Registry:
    """The server's models and what has been made of them.

    Attributes:
        allow_folders: whether visitors may name folders of this machine; only for a server on loopback.
    """

    def __init__(self, *, allow_folders: bool):
        self.allow_folders = allow_folders
        self._models: Shelf[VideoModel] = Shelf(2)
        self._variants: Shelf[Variant] = Shelf(4)
        self._statistics: Shelf[Statistics] = Shelf(4)
        self._references: Shelf[Clip] = Shelf(8)

    def model(self, source: str) -> VideoModel:
        """The model of that name, loaded if need be.

        Raises:
            ModelError: it cannot be loaded, or names a folder where folders are not allowed.
        """
        from qvd_core.models.catalog import CATALOG

        source = source.strip()
        if source not in CATALOG and not self.allow_folders and not _is_hub_id(source):
            raise ModelError(f"{source!r} is neither a model of the list nor a hub id (owner/name).")

        def make() -> VideoModel:
            from qvd_core.models.loader import load

            return load(source)

        return self._models.get(source, make)

    def loaded(self, source: str) -> VideoModel | None:
        """The model of that name if it is loaded already."""
        return self._models.peek(source)

    def statistics(self, model: VideoModel) -> Statistics | None:
        """The model's calibration statistics: shipped, or from a run on this server; None if neither is."""
        known = self._statistics.peek(model.fingerprint)
        if known is not None:
            return known
        from qvd_core.calibration.calibrate import embedded_statistics

        shipped = embedded_statistics(model)
        if shipped is not None:
            self._statistics.put(model.fingerprint, shipped)
        return shipped

    def keep_statistics(self, model: VideoModel, statistics: Statistics) -> None:
        self._statistics.put(model.fingerprint, statistics)

    def variant(self, model: VideoModel, recipe: Recipe) -> Variant:
        """The variant of `model` under `recipe`, built if need be."""
        from qvd_core.variant import quantize

        statistics = self.statistics(model) if recipe.needs_statistics else None
        key = (model.fingerprint, recipe, None if statistics is None else statistics.run)
        return self._variants.get(key, lambda: quantize(model, recipe, statistics))

    def reference(self, model: VideoModel, settings: Settings) -> Clip | None:
        """The full-precision clip of these very settings, if it was sampled lately."""
        return self._references.peek((model.fingerprint, settings))

    def keep_reference(self, model: VideoModel, clip: Clip) -> None:
        self._references.put((model.fingerprint, clip.settings), clip)


def _is_hub_id(text: str) -> bool:
    owner, _, name = text.partition("/")
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    return bool(owner and name) and set(owner + name) <= allowed and not text.startswith(".") and ".." not in text
