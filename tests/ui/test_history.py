"""Undo: takes back changes one by one, wherever they came from, and remembers a bounded number of them."""

from __future__ import annotations

import gradio as gr
import pytest

from qvd_core.recipe import Recipe, get_recipe
from tests.ui.pages import handler
from ui.history import MOST, undo_button

FIRST, SECOND, THIRD = (get_recipe(name) for name in ("minmax-w8a8", "qvd-w4a8", "qvd-w6a6"))


@pytest.fixture(scope="module")
def demo() -> gr.Blocks:
    with gr.Blocks() as made:
        undo_button(gr.State(""), gr.State(FIRST))
    return made


def remembered(demo: gr.Blocks, *recipes: Recipe) -> list[Recipe]:
    past: list[Recipe] = []
    for recipe in recipes:
        past, button = handler(demo, "remember")(recipe, past)
        assert button["interactive"] == (len(past) > 1)
    return past


def test_changes_are_taken_back_one_by_one(demo: gr.Blocks) -> None:
    past = remembered(demo, FIRST, SECOND, THIRD)
    undo = handler(demo, "undo")
    past, recipe = undo(past)
    assert recipe == SECOND
    # The recipe's own change event comes back with what is already the last.
    past, button = handler(demo, "remember")(recipe, past)
    assert button["interactive"]
    past, recipe = undo(past)
    assert recipe == FIRST
    past, button = handler(demo, "remember")(recipe, past)
    assert past == [FIRST]
    assert not button["interactive"]
    assert undo(past)[0] == [FIRST]  # nothing more to take back


def test_the_same_recipe_twice_is_no_change(demo: gr.Blocks) -> None:
    assert remembered(demo, FIRST, SECOND, SECOND) == [FIRST, SECOND]


def test_the_memory_is_bounded(demo: gr.Blocks) -> None:
    past = remembered(demo, *[FIRST, SECOND] * MOST)
    assert len(past) == MOST
    assert past[-1] == SECOND
