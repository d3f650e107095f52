"""The same figure through plain `gr.Plot`, driven by one slider: what the live views are measured against.

    python -m tests.benchmarks.ui.plain_plot

Serves a page of its own and prints its address. The figure is the first of the Channels tab as it opens.
"""

from __future__ import annotations

import gradio as gr

from analysis.channels import channel_table
from analysis.figures.channels import ranges
from analysis.screen import figure
from analysis.site_map import site_overview
from qvd_core import embedded_statistics, load
from qvd_core.formats import ActivationFormat
from ui.channels_tab import ROLE


def build() -> gr.Blocks:
    model = load("animatediff-mini")
    statistics = embedded_statistics(model)
    assert statistics is not None
    sites = [site.name for site in model.sites if site.role == ROLE and site.name in statistics.low]
    site = min(site_overview(statistics, sites), key=lambda row: row.mean).site

    def draw(at: float) -> object:
        step = int(at) - 1 if at else None
        return figure(ranges(channel_table(statistics, site, ActivationFormat(8), step, "range")))

    with gr.Blocks(fill_width=True) as demo:
        step = gr.Slider(0, statistics.run.steps, 0, step=1, label="Step", elem_id="plain-step")
        plot = gr.Plot(draw(0), show_label=False, elem_id="plain-figure")
        step.change(draw, step, plot, show_progress="hidden", trigger_mode="always_last")
    return demo


if __name__ == "__main__":
    build().queue(max_size=32).launch(run_history=False, ssr_mode=False, footer_links=[])
