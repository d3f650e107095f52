"""What the server keeps: made once, bounded, never mixed up between models or recipes."""

from __future__ import annotations

import threading
import time

import pytest

from qvd_core.calibration.calibrate import calibrate
from qvd_core.errors import ModelError, RecipeError
from qvd_core.models.loader import VideoModel, load
from qvd_core.recipe import get_recipe
from qvd_core.sampling import default_settings, generate
from ui.registry import Registry, Shelf


def test_a_value_is_made_once_however_many_ask() -> None:
    shelf: Shelf[int] = Shelf(2)
    made = []

    def make() -> int:
        time.sleep(0.05)
        made.append(1)
        return 7

    threads = [threading.Thread(target=shelf.get, args=("key", make)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
    assert shelf.peek("key") == 7


def test_a_failure_is_not_kept() -> None:
    shelf: Shelf[int] = Shelf(2)
    with pytest.raises(ZeroDivisionError):
        shelf.get("key", lambda: 1 // 0)
    assert shelf.get("key", lambda: 3) == 3


def test_the_least_recently_used_leaves_and_is_reported() -> None:
    dropped: list[int] = []
    shelf: Shelf[int] = Shelf(2, dropped.append)
    for value in (1, 2):
        shelf.put(value, value)
    shelf.get(1, lambda: 0)
    shelf.put(3, 3)
    assert dropped == [2]
    assert shelf.peek(2) is None


@pytest.mark.parametrize("source", ["/etc", "assets/models", "../x", "owner/name", "animatediff-sd15"])
def test_a_public_server_offers_embedded_models_only(source: str) -> None:
    with pytest.raises(ModelError, match="this server offers animatediff-mini"):
        Registry(any_model=False).model(source)


def test_a_recipe_is_checked_against_a_loaded_model_only(wan: VideoModel) -> None:
    registry = Registry(any_model=True)
    scri = get_recipe("qvd-w8a8")
    assert registry.checked("wan", scri) is scri
    registry._models.put("wan", wan)
    with pytest.raises(RecipeError, match=r"No site of .* matches 'temporal_attention'"):
        registry.checked("wan", scri)


def test_two_models_with_the_same_weights_are_kept_apart(tiny_folder) -> None:
    registry = Registry(any_model=True)
    first = registry.model(str(tiny_folder))
    twin = load(str(tiny_folder))
    assert first.fingerprint == twin.fingerprint
    settings = default_settings(first, "a red circle", steps=1)
    registry.keep_reference(first, generate(first, settings))
    assert registry.reference(first, settings) is not None
    assert registry.reference(twin, settings) is None
    recipe = get_recipe("dynamic-w8a8")
    assert registry.variant(first, recipe) is registry.variant(first, recipe)
    assert registry.variant(twin, recipe).model is twin


def test_what_was_made_of_a_model_leaves_with_it(model: VideoModel) -> None:
    registry = Registry(any_model=True)
    registry._models.put("tiny", model)
    registry.keep_statistics(model, calibrate(model, ["a red circle"], steps=1))
    variant = registry.variant(model, get_recipe("minmax-w8a8"))
    assert variant.model is model
    for other in ("b", "c"):
        registry._models.put(other, object())  # type: ignore[arg-type]
    assert registry.statistics(model) is None
