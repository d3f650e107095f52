"""A plotly figure that is updated in place: it keeps zoom, leaks nothing, follows light and dark.

`gr.Plot` builds its figure anew at every update, which forgets the zoom and leaks WebGL contexts; this
panel calls `Plotly.react` on one node instead. The script comes from the installed plotly package, so it
always fits the figures, and is fetched by the first panel that has something to show, never before.
"""

from __future__ import annotations

import functools
import importlib.util
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import gradio as gr

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ASSETS = Path(__file__).parents[1] / "assets" / "ui"
STYLE = ASSETS / "figures.css"
JS_ON_LOAD = (ASSETS / "figure_panel.js").read_text(encoding="utf-8")

# Static on purpose: nothing is interpolated, so a new value never re-renders these nodes.
HTML_TEMPLATE = """
<div class="qvd-figure" data-testid="figure" data-state="empty" data-script="{script}">
  <p class="qvd-figure-message"></p><div class="qvd-figure-plot" role="img"></div>
</div>"""


def figure_panel(*, placeholder: str = "Nothing to show yet.", **kwargs: Any) -> gr.HTML:
    """Make the panel; its value is a `figure_payload` or None. The page needs `STYLE` among its styles.

    Args:
        placeholder: what the panel says while it has no value.
        kwargs: for `gr.HTML` (`elem_id`, `visible`, ...).
    """
    return gr.HTML(
        html_template=HTML_TEMPLATE.format(script=_script_path()),
        js_on_load=JS_ON_LOAD,
        apply_default_css=False,
        placeholder=placeholder,
        **kwargs,
    )


def figure_payload(figure: Figure) -> dict[str, Any]:
    """What the panel shows: `data` and `layout` of the figure, arrays packed as binary.

    `layout.meta["alt_text"]` becomes the label that screen readers speak.
    """
    return figure.to_dict()


def finding(text: str) -> str:
    """What a figure shows, as a paragraph beside it."""
    return f'<p class="qvd-finding">{escape(text)}</p>'


@functools.cache
def _script_path() -> str:
    """Where the page finds plotly.js, relative to its root; allows that one file to be served."""
    spec = importlib.util.find_spec("plotly")
    assert spec is not None
    assert spec.origin is not None
    script = Path(spec.origin).parent / "package_data" / "plotly.min.js"
    gr.set_static_paths([script])
    return "/gradio_api/file=" + quote(script.as_posix())
