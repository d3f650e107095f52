"""The whole page, put together."""

from __future__ import annotations

import threading
from html import escape

import gradio as gr

from qvd_core.errors import QvdError
from qvd_core.recipe import Recipe, get_recipe
from ui.channels_tab import channels_tab
from ui.compare_tab import compare_tab
from ui.downloads import Downloads
from ui.endpoints import add_endpoints
from ui.errors_tab import errors_tab
from ui.model_tab import model_tab
from ui.recipe_tab import recipe_tab
from ui.registry import Registry
from ui.running import Runs
from ui.sensitivity_tab import sensitivity_tab
from ui.sidebar import sidebar
from ui.speed_tab import speed_tab
from ui.temporal_tab import temporal_tab

DEFAULT_MODEL = "animatediff-mini"
DEFAULT_RECIPE = "minmax-w8a8"

# On a phone the open sidebar would cover the page.
FOLD_SIDEBAR = """() => {
  if (window.innerWidth < 768) document.querySelector(".sidebar.open .toggle-button")?.click();
}"""

# The address bar always holds a link to the present recipe; other parameters (the theme's) stay.
SHOW_LINK = """query => {
  const address = new URL(window.location);
  for (const [name, value] of new URLSearchParams(query)) address.searchParams.set(name, value);
  window.history.replaceState(null, "", address);
}"""


def build(*, any_model: bool = False) -> gr.Blocks:
    """The demo, ready to launch.

    Args:
        any_model: let visitors load hub models and folders of this machine; only for a private server.
    """
    registry, runs, downloads = Registry(any_model=any_model), Runs(), Downloads()
    with gr.Blocks(title="QVD Studio", fill_width=True, delete_cache=(1800, 7200)) as demo:
        model_name, recipe = gr.State(""), gr.State(get_recipe(DEFAULT_RECIPE))
        sidebar(registry, model_name, recipe)
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Compare", id="compare"):
                compare_tab(registry, runs, downloads, model_name, recipe)
            with gr.Tab("Model", id="model", render_children=True) as model_view:
                model_tab(registry, model_name, recipe, model_view)
            with gr.Tab("Recipe", id="recipe", render_children=True):
                recipe_tab(registry, model_name, recipe)
            with gr.Tab("Channels", id="channels") as channels:
                channels_tab(registry, model_name, recipe, channels)
            with gr.Tab("Temporal", id="temporal") as temporal:
                temporal_tab(registry, model_name, recipe, temporal)
            with gr.Tab("Errors", id="errors"):
                errors_tab(registry, runs, model_name, recipe)
            with gr.Tab("Sensitivity", id="sensitivity") as sensitivity:
                sensitivity_tab(registry, runs, model_name, recipe, sensitivity)
            with gr.Tab("Speed", id="speed"):
                speed_tab(registry, runs, model_name, recipe)

        link = gr.Textbox(visible="hidden")
        recipe.change(
            lambda current: current.to_query(), recipe, link, show_progress="hidden", api_visibility="private"
        ).then(None, link, None, js=SHOW_LINK)

        def open_page(request: gr.Request) -> tuple[str, Recipe]:
            query = str(request.url.query) if request.url else ""
            if "recipe=" not in query:
                return DEFAULT_MODEL, get_recipe(DEFAULT_RECIPE)
            try:
                return DEFAULT_MODEL, Recipe.from_query(query)
            except QvdError as error:
                gr.Warning(f"{escape(str(error), quote=False)} The page opens with {DEFAULT_RECIPE}.", duration=None)
                return DEFAULT_MODEL, get_recipe(DEFAULT_RECIPE)

        def close_page(request: gr.Request) -> None:
            runs.cancel_all(str(request.session_hash))
            downloads.forget(str(request.session_hash))

        demo.load(open_page, None, [model_name, recipe], show_progress="hidden", api_visibility="private")
        demo.load(None, None, None, js=FOLD_SIDEBAR)
        demo.unload(close_page)
        add_endpoints(registry)
    # Imports torch and loads the default model while the visitor reads the page.
    threading.Thread(target=_warm_up, args=(registry,), daemon=True).start()
    return demo


def _warm_up(registry: Registry) -> None:
    try:
        registry.model(DEFAULT_MODEL)
    except QvdError as error:
        # The page shows the same message as soon as it asks for the model.
        print(f"warm-up: {error}")
