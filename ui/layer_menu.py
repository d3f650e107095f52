"""A menu of a model's layers: the browser's own, which opens and closes at once however many layers there are.

`gr.Dropdown` builds its list in the page: closing one of some hundred entries, and Gradio's own handling of the
change, take a tenth of a second. Here arrow keys walk from layer to layer while a live view follows, which is told
before Gradio is.

The component's value is the path of the chosen layer, "" for none; `offered` makes an update of its entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from analysis.architecture import block_of

JS_ON_LOAD = (Path(__file__).parents[1] / "assets" / "ui" / "layer_menu.js").read_text(encoding="utf-8")


def layer_menu(label: str, elem_id: str, follower: tuple[str, str] = ("", "")) -> gr.HTML:
    """Make a menu without entries.

    Args:
        follower: name of a live view that follows the menu, and what the menu is called among its controls.
    """
    view, control = follower
    return gr.HTML(
        value="",
        html_template=(
            f'<label class="qvd-menu"><span>{escape(label)}</span>'
            f'<select data-view="{view}" data-control="{control}"></select></label>'
        ),
        js_on_load=JS_ON_LOAD,
        apply_default_css=False,
        container=True,
        elem_id=elem_id,
        elem_classes=["qvd-wide", "qvd-layers"],
        layers=[],
    )


def offered(layers: Sequence[tuple[str, str]], chosen: str | None) -> dict[str, Any]:
    """An update: entries (words, path) in the model's order, and the path of the chosen one, if it is among them."""
    known = chosen if any(path == chosen for _, path in layers) else ""
    return gr.update(layers=[[block_of(path), words, path] for words, path in layers], value=known)
