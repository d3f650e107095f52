"""Parts of the page built without a server, and the functions behind them."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gradio as gr

from qvd_core.models.loader import VideoModel
from qvd_core.recipe import Recipe, get_recipe
from ui.channels_tab import channels_tab
from ui.live_view import question
from ui.registry import Registry
from ui.running import Runs
from ui.sensitivity_tab import sensitivity_tab
from ui.temporal_tab import temporal_tab

REQUEST = SimpleNamespace(session_hash="visitor")


def serving(model: VideoModel) -> Registry:
    """A registry that has `model` loaded, under its name."""
    registry = Registry(any_model=True)
    registry._models.put(model.spec.name, model)
    return registry


def handler(demo: gr.Blocks, name: str) -> Callable[..., Any]:
    """The function of that name behind an event of the page."""
    return next(one.fn for one in demo.fns.values() if getattr(one.fn, "__name__", "") == name)


def analysis_tabs(registry: Registry) -> gr.Blocks:
    """The tabs whose views answer the page directly."""
    with gr.Blocks() as demo:
        model_name, recipe = gr.State(""), gr.State(get_recipe("minmax-w8a8"))
        with gr.Tab("Channels") as tab:
            channels_tab(registry, model_name, recipe, tab)
        with gr.Tab("Temporal") as tab:
            temporal_tab(registry, model_name, recipe, tab)
        with gr.Tab("Sensitivity") as tab:
            sensitivity_tab(registry, Runs(), model_name, recipe, tab)
    return demo


def answered(demo: gr.Blocks, view: str, question: Any) -> dict[str, Any]:
    """What the page reads when it asks a view, as anybody can."""
    component: Any = next(block for block in demo.blocks.values() if getattr(block, "elem_id", None) == view)
    found: dict[str, Any] = json.loads(component.answer_live(question))
    return found


def asked(model: VideoModel, choices: dict[str, Any], recipe: Recipe | None = None) -> dict[str, Any]:
    """A question as the page asks it."""
    return question(model.spec.name, recipe or get_recipe("minmax-w8a8"), choices)
