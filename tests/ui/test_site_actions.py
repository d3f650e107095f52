"""Buttons beside a layer: they change all layers that read the same input, and only those."""

from __future__ import annotations

import gradio as gr
import pytest

from qvd_core.models.loader import VideoModel
from qvd_core.recipe import get_recipe
from tests.ui.pages import handler, serving
from ui.site_actions import all_layers, site_actions

BASE = get_recipe("minmax-w8a8")


@pytest.fixture(scope="module")
def demo(model: VideoModel) -> gr.Blocks:
    registry = serving(model)
    with gr.Blocks() as made:
        model_name, recipe = gr.State(""), gr.State(BASE)
        site_actions(registry, model_name, recipe, all_layers(registry, model_name, "layer"))
    return made


@pytest.fixture(scope="module")
def query(model: VideoModel) -> str:
    """A layer whose input two others read too: the keys' and the values'."""
    return next(s.name for s in model.sites if s.role == "temporal_attention" and s.name.endswith("to_q"))


def readers(query: str) -> list[str]:
    return [query.removesuffix("to_q") + part for part in ("to_q", "to_k", "to_v")]


def test_a_layer_is_kept_in_floating_point_with_those_that_read_its_input(
    demo: gr.Blocks, model: VideoModel, query: str
) -> None:
    changed = handler(demo, "exempted")(model.spec.name, BASE, query)
    left = [site.name for site in model.sites if changed.formats(site.name, site.role) == (None, None)]
    assert sorted(left) == sorted(readers(query))
    assert changed.name != BASE.name
    words = handler(demo, "say")(model.spec.name, changed, query)
    assert "weights in floating point, inputs in floating point" in words
    assert "all 3 layers that read this input" in words
    assert handler(demo, "as_recipe")(model.spec.name, changed, query) == BASE


def test_more_bits_stop_at_what_there_is(demo: gr.Blocks, model: VideoModel, query: str) -> None:
    recipe = get_recipe("minmax-w4a8")
    widths = []
    for _ in range(5):
        recipe = handler(demo, "widened")(model.spec.name, recipe, query)
        weights, inputs = recipe.formats(query, "temporal_attention")
        assert weights is not None
        assert inputs is not None
        widths.append((weights.bits, inputs.bits))
    assert widths == [(6, 10), (8, 12), (8, 14), (8, 16), (8, 16)]


def test_a_range_per_token_needs_a_quantized_input(demo: gr.Blocks, model: VideoModel, query: str) -> None:
    changed = handler(demo, "made_dynamic")(model.spec.name, BASE, query)
    assert all(
        getattr(changed.formats(name, "temporal_attention")[1], "range", None) == "dynamic_per_token"
        for name in readers(query)
    )
    exempt = handler(demo, "exempted")(model.spec.name, BASE, query)
    with pytest.raises(gr.Error, match="stays in floating point"):
        handler(demo, "made_dynamic")(model.spec.name, exempt, query)


@pytest.mark.parametrize("action", ["exempted", "widened", "made_dynamic"])
def test_without_a_layer_an_action_says_so(demo: gr.Blocks, model: VideoModel, action: str) -> None:
    for nothing in (None, "nowhere"):
        with pytest.raises(gr.Error, match="Choose a layer first"):
            handler(demo, action)(model.spec.name, BASE, nothing)
    assert handler(demo, "say")(model.spec.name, BASE, None) == ""


def test_the_menu_offers_the_layers_and_keeps_the_choice(demo: gr.Blocks, model: VideoModel, query: str) -> None:
    menu = handler(demo, "offer")(model.spec.name, query)
    assert [path for _, _, path in menu["layers"]] == [site.name for site in model.sites]
    assert menu["value"] == query
    assert handler(demo, "offer")(model.spec.name, "of another model")["value"] == ""
