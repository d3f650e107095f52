"""What the server keeps between requests: loaded models, their statistics, recent variants and references.

Everything here is shared by all visitors and looked up by what determines it (model, recipe, settings), so
what one visitor gets does not depend on what another does. Sessions hold only names and recipes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from qvd_core.errors import ModelError
from qvd_core.models.catalog import CATALOG, ModelSpec
from qvd_core.recipe import Recipe

if TYPE_CHECKING:
    from qvd_core.calibration.statistics import Statistics
    from qvd_core.models.loader import VideoModel
    from qvd_core.sampling import Clip, Settings
    from qvd_core.sensitivity import Sensitivity
    from qvd_core.variant import Variant

Value = TypeVar("Value")


class Shelf(Generic[Value]):
    """The most recently used values, each made once even when several threads ask at the same time."""

    def __init__(self, size: int, on_drop: Callable[[Value], None] | None = None):
        self.size = size
        self._on_drop = on_drop
        self._values: OrderedDict[Any, Value] = OrderedDict()
        self._locks: dict[Any, threading.Lock] = {}
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
        dropped = []
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self.size:
                oldest, old = self._values.popitem(last=False)
                self._locks.pop(oldest, None)
                dropped.append(old)
        for old in dropped:
            if self._on_drop is not None:
                self._on_drop(old)

    def drop(self, unwanted: Callable[[Any], bool]) -> None:
        """Forget every value whose key is `unwanted`."""
        with self._lock:
            for key in [key for key in self._values if unwanted(key)]:
                del self._values[key]
                self._locks.pop(key, None)


class Registry:
    """The server's models and what has been made of them.

    Attributes:
        any_model: whether visitors may load hub models, and folders of this machine, beside the embedded ones.
    """

    def __init__(self, *, any_model: bool):
        self.any_model = any_model
        self._models: Shelf[VideoModel] = Shelf(2, self._forget)
        self._variants: Shelf[Variant] = Shelf(4)
        self._statistics: Shelf[Statistics] = Shelf(4)
        self._references: Shelf[Clip] = Shelf(8)
        self._measured: Shelf[Sensitivity] = Shelf(8)

    def offered(self) -> list[ModelSpec]:
        """The catalog models visitors may choose: the embedded ones, or all."""
        return [spec for spec in CATALOG.values() if spec.embedded or self.any_model]

    def model(self, source: str) -> VideoModel:
        """The model of that name, loaded if need be.

        Raises:
            ModelError: it cannot be loaded, or is not one that this server offers.
        """
        source = source.strip()
        names = [spec.name for spec in self.offered()]
        if source not in names and not self.any_model:
            raise ModelError(
                f"Unknown model {source!r}; this server offers {', '.join(names)}."
                " Start it with --any-model to load others."
            )

        def make() -> VideoModel:
            from qvd_core.models.loader import load

            return load(source, allow_folders=self.any_model)

        return self._models.get(source, make)

    def loaded(self, source: str) -> VideoModel | None:
        """The model of that name if it is loaded already."""
        return self._models.peek(source)

    def checked(self, source: str, recipe: Recipe) -> Recipe:
        """`recipe`, once it is known to match the model; a model still loading is checked when it is used.

        Raises:
            RecipeError: a pattern matches none of the model's layers.
        """
        model = self.loaded(source)
        if model is not None:
            from qvd_core.recipe_checks import check_overrides

            check_overrides(model, recipe)
        return recipe

    def statistics(self, model: VideoModel) -> Statistics | None:
        """The model's calibration statistics: shipped, or from a run on this server; None if neither is."""
        known = self._statistics.peek(model)
        if known is not None:
            return known
        from qvd_core.calibration.calibrate import embedded_statistics

        shipped = embedded_statistics(model)
        if shipped is not None:
            self._statistics.put(model, shipped)
        return shipped

    def keep_statistics(self, model: VideoModel, statistics: Statistics) -> None:
        self._statistics.put(model, statistics)

    def variant(self, model: VideoModel, recipe: Recipe, engine: str = "simulate") -> Variant:
        """The variant of `model` under `recipe`, built if need be.

        Raises:
            EngineError: the machine does not have the `engine`.
        """
        from qvd_core.engines.integer import in_integers
        from qvd_core.variant import quantize

        def make() -> Variant:
            if engine == "int8":
                return in_integers(self.variant(model, recipe))
            return quantize(model, recipe, self.statistics(model) if recipe.needs_statistics else None)

        return self._variants.get((model, recipe, engine), make)

    def reference(self, model: VideoModel, settings: Settings) -> Clip | None:
        """The full-precision clip of these very settings, if it was sampled lately."""
        return self._references.peek((model, settings))

    def keep_reference(self, model: VideoModel, clip: Clip) -> None:
        self._references.put((model, clip.settings), clip)

    def measured(self, model: VideoModel, recipe: Recipe) -> Sensitivity | None:
        """What quantizing each layer alone was measured to cost, if somebody has measured it."""
        return self._measured.peek((model, recipe))

    def keep_measured(self, model: VideoModel, recipe: Recipe, found: Sensitivity) -> None:
        self._measured.put((model, recipe), found)

    def _forget(self, model: VideoModel) -> None:
        """Drop what was made of a model that has left the shelf, and would keep it in memory."""
        self._statistics.drop(lambda key: key is model)
        for shelf in (self._variants, self._references, self._measured):
            shelf.drop(lambda key: key[0] is model)
