"""Tab "Speed": what int8 is worth on the machine that serves this page, measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from qvd_core.models.catalog import CATALOG
from qvd_core.recipe import Recipe
from ui import panels
from ui.comparison_run import Progress, prepared
from ui.live_view import LiveView, Shown, figure_slot, finding, words_slot
from ui.long_run import Report, long_run
from ui.registry import Registry
from ui.running import Runs

if TYPE_CHECKING:
    from analysis.speed import Speed

REPEATS = 5
PROMPT = CATALOG["animatediff-mini"].example_prompts[0]


def speed_tab(registry: Registry, runs: Runs, model_name: gr.State, recipe: gr.State) -> None:
    """Build the tab; its button measures the present model under the present recipe."""
    gr.HTML(
        panels.note(
            "Other tabs simulate integers, which says nothing about speed. Here the quantized model really computes in"
            " int8: the same codes, multiplied as integers, and the time path looked up by step. One denoising step is"
            " timed against floating point in turn, on the processor of this server; a step has no text encoder and no"
            " decoder in it. Small models gain little, for reading and writing numbers takes as long as multiplying."
        )
    )
    fuse = gr.Checkbox(
        False,
        label="Also compiled",
        info="torch.compile fuses what lies between the products: several minutes once, and then the quickest.",
        elem_id="speed-compiled",
    )
    view = LiveView(
        registry, "speed-view", words_slot("sentence") + figure_slot("steps") + words_slot("rows"), shown_later=True
    )
    long_run(
        runs,
        "speed",
        "Measure a denoising step here",
        [model_name, recipe, fuse],
        lambda report, *values: _measure(registry, report, *values),
        [view.component],
        lambda found: [view.showing(_shown(*found))],
    )
    view.component.render()


def _measure(
    registry: Registry, report: Report, name: str, recipe: Recipe, compiled: bool
) -> tuple[Speed, dict[str, str]]:
    from analysis.speed import speed_table
    from qvd_core.benchmarks.inference import benchmark_inference

    model, _ = prepared(registry, name, recipe, PROMPT, 0, None, None, report)
    variant = registry.variant(model, recipe)
    stages = 8 + 5 * compiled
    done = [0]

    def stage(what: str) -> None:
        done[0] += 1
        report(Progress(f"Measuring: {what}", min(1.0, done[0] / stages)))

    result = benchmark_inference(
        model,
        recipes=(recipe,),
        against=("fp32", "bf16"),
        variants={recipe.name: variant},
        repeats=REPEATS,
        compiled=compiled,
        on_stage=stage,
    )
    return speed_table(result), result["left_out"]


def _shown(table: Speed, left_out: dict[str, str]) -> Mapping[str, Shown | str]:
    from analysis.figures.speed import step_times
    from analysis.speed import HEADINGS

    rows: list[tuple[Any, ...]] = [*table.rows()]
    rows += [(side, f"not measured: {reason}", "", "") for side, reason in left_out.items()]
    return {
        "sentence": finding(table.in_words()),
        "steps": Shown(step_times(table), table),
        "rows": panels.table(HEADINGS, rows),
    }
