"""Tab "Compare": the same prompt and seed in full precision and quantized, frame by frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from analysis.architecture import by_role, in_words, total
from qvd_core.cost import site_costs
from qvd_core.errors import Cancelled, QvdError
from qvd_core.models.catalog import CATALOG
from qvd_core.recipe import RECIPES, Recipe
from qvd_core.shapeworld.words import describe_words
from ui import panels
from ui.comparator import comparator, comparison_payload, preview_payload
from ui.comparison_run import Progress, Request, Result, run_comparison
from ui.downloads import Downloads
from ui.errors import shown
from ui.live_view import LiveView, Shown, figure_slot
from ui.registry import Registry
from ui.running import Runs

if TYPE_CHECKING:
    from qvd_core.variant import Variant

DEFAULT = CATALOG["animatediff-mini"]
ARITHMETIC = [("simulated, any bits", "simulate"), ("in int8, here", "int8")]


def compare_tab(registry: Registry, runs: Runs, downloads: Downloads, model_name: gr.State, recipe: gr.State) -> None:
    """Build the tab; it compares the present model under the present recipe."""
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            prompt = gr.Textbox(
                DEFAULT.example_prompts[0],
                label="Prompt",
                info=describe_words(),
                lines=2,
                max_lines=4,
                elem_id="compare-prompt",
            )
            examples = gr.Dropdown(
                list(DEFAULT.example_prompts), value=None, label="or take an example", elem_id="compare-examples"
            )
        with gr.Column(scale=2, min_width=260):
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90, elem_id="compare-seed")
                steps = gr.Slider(1, 50, DEFAULT.steps, step=1, label="Steps", min_width=140, elem_id="compare-steps")
            guidance = gr.Slider(1, 12, DEFAULT.guidance_scale, step=0.5, label="Guidance scale")
            engine = gr.Radio(ARITHMETIC, value="simulate", label="Quantized model computes", elem_id="compare-engine")
    with gr.Row():
        start = gr.Button("Generate", variant="primary", scale=3, elem_id="compare-generate")
        stop = gr.Button("Cancel", variant="stop", scale=1, interactive=False, elem_id="compare-cancel")
    status = gr.HTML(elem_id="compare-status", elem_classes="qvd-flush")
    panel = comparator(elem_id="compare-panel")
    scores = gr.HTML(elem_id="compare-scores", elem_classes="qvd-flush")
    growth = LiveView(registry, "latents-view", figure_slot("latents", 300))
    with gr.Row(visible=False) as files:
        links = [
            gr.DownloadButton("Full precision (mp4)", size="sm"),
            gr.DownloadButton("Quantized (mp4)", size="sm"),
            gr.DownloadButton("Scores (json)", size="sm"),
        ]
    with gr.Accordion("The same in Python", open=False):
        snippet = gr.Code(language="python", show_label=False, elem_id="compare-snippet")

    inputs: list[Any] = [model_name, recipe, prompt, seed, steps, guidance, engine]
    wanted = gr.State(None)  # the request as it was when the button was pressed
    last = gr.State(None)  # what the panel showed before this run, to return to
    busy = [gr.update(interactive=False), gr.update(interactive=True)]
    idle = [gr.update(interactive=True), gr.update(interactive=False)]

    def press(
        name: str,
        current: Recipe,
        text: str,
        number: float | None,
        count: float,
        scale: float,
        arithmetic: str,
        request: gr.Request,
    ) -> list[Any]:
        runs.expect(str(request.session_hash))
        asked = Request(name, current, text, int(number or 0), int(count), float(scale), arithmetic)
        return [asked, panels.progress_bar("Waiting: the server runs one comparison at a time.", 0), *busy]

    @shown
    def run(asked: Request, before: dict[str, Any] | None, request: gr.Request) -> Iterator[dict[Any, Any]]:
        session = str(request.session_hash)

        def job(report: Callable[[Progress], None]) -> Result:
            return run_comparison(registry, asked, report)

        try:
            for update in runs.stream(session, job):
                if isinstance(update, Result):
                    yield from _finish(update)
                    folder = downloads.folder(session)
                    if folder is not None:
                        yield _offer(update, folder)
                else:
                    seen: dict[Any, Any] = {status: panels.progress_bar(update.text, update.share)}
                    if update.picture is not None:
                        seen[panel] = preview_payload(update.picture, update.text)
                    yield seen
        except Exception as error:
            # The page must be usable again, and show what it showed, before any message.
            text = "Cancelled." if isinstance(error, Cancelled) else "The run failed; the message says why."
            yield {panel: before, status: panels.note(text), start: idle[0], stop: idle[1]}
            if isinstance(error, Cancelled):
                return
            if isinstance(error, QvdError):
                raise
            raise QvdError(f"Unexpected {type(error).__name__}: {error}") from error

    def _finish(result: Result) -> Iterator[dict[Any, Any]]:
        payload = _payload(result)
        yield {
            panel: payload,
            last: payload,
            status: panels.note(_timing(result)),
            scores: panels.note(_caption(result)) + _score_cards(result),
            growth.component: growth.showing({"latents": _latent_error(result)}),
            files: gr.update(visible=False),
            start: idle[0],
            stop: idle[1],
        }

    def _offer(result: Result, folder: Any) -> dict[Any, Any]:
        from qvd_core.report import write_comparison

        written = write_comparison(folder, result.variant, result.reference, result.quantized, result.scores)
        return {files: gr.update(visible=True), **dict(zip(links, map(str, written), strict=True))}

    def cancel(request: gr.Request) -> None:
        runs.cancel(str(request.session_hash))

    def follow_model(name: str) -> list[Any]:
        model = registry.loaded(name)
        if model is None or model.spec.name == DEFAULT.name:
            spec, info = DEFAULT, describe_words()
        else:
            spec, info = model.spec, ""
        return [
            gr.update(choices=list(spec.example_prompts), value=None),
            gr.update(value=spec.steps),
            gr.update(value=spec.guidance_scale),
            gr.update(info=info),
        ]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    start.click(press, inputs, [wanted, status, start, stop], queue=False, **quiet).then(
        run,
        [wanted, last],
        [panel, last, status, scores, growth.component, start, stop, files, *links],
        concurrency_id="model",
        concurrency_limit=1,
        # A run still writing its files must not swallow the next press, whose buttons would stay disabled.
        trigger_mode="multiple",
        **quiet,
    )
    stop.click(cancel, queue=False, api_visibility="private")
    examples.input(lambda chosen: chosen or gr.skip(), examples, prompt, queue=False, api_visibility="private")
    model_name.change(follow_model, model_name, [examples, steps, guidance, prompt], **quiet)
    changes = [component.change for component in inputs]
    gr.on(changes, _snippet, inputs, snippet, trigger_mode="always_last", **quiet)


def _payload(result: Result) -> dict[str, Any]:
    from qvd_core.video import to_uint8

    return comparison_payload(
        to_uint8(result.reference.frames),
        to_uint8(result.quantized.frames),
        fps=result.variant.model.spec.fps,
        labels=("Full precision", f"Quantized · {_name(result.variant)}"),
        psnr_by_frame=result.scores.psnr_by_frame,
        ssim_by_frame=result.scores.ssim_by_frame,
    )


def _name(variant: Variant) -> str:
    return f"{variant.recipe.name}{'' if variant.engine == 'simulate' else f' in {variant.engine}'}"


def _latent_error(result: Result) -> Shown:
    """How far the latents are apart after each step."""
    import numpy as np

    from analysis.errors import ErrorGrowth
    from analysis.figures.errors import error_growth

    name, errors = result.variant.recipe.name, result.scores.latent_error
    table = ErrorGrowth(name, (name,), np.array([errors], dtype=np.float32))
    return Shown(error_growth(table), table)


def _caption(result: Result) -> str:
    """What the figures below belong to."""
    model, settings = result.variant.model, result.reference.settings
    return (
        f"{model.spec.name} · {_name(result.variant)} · “{settings.prompt}” · seed {settings.seed} ·"
        f" {settings.steps} steps · guidance {settings.guidance_scale:g}"
    )


def _score_cards(result: Result) -> str:
    scores, variant = result.scores, result.variant
    equal = math.isinf(scores.psnr_db)
    size = total(by_role(site_costs(variant.model.sites, variant.recipe, None, variant.model.spec.steps)))
    return panels.cards(
        [
            ("PSNR", "identical" if equal else f"{scores.psnr_db:.1f} dB", "of the whole clip; higher is closer"),
            ("SSIM", f"{scores.ssim:.4f}", "mean over frames; 1 is identical"),
            (
                "Latent error",
                f"{scores.latent_error[-1]:.1%}",
                f"of the latents' size after {len(scores.latent_error)} steps; {scores.latent_error[0]:.1%} after one",
            ),
            (
                "Weights, computed",
                in_words(size.bytes_after, "B"),
                f"{in_words(size.bytes_before, 'B')} in fp16; {size.bytes_before / size.bytes_after:.2f}× smaller",
            ),
        ]
    )


def _timing(result: Result) -> str:
    reference = "reused from an earlier run" if result.reused else f"{result.reference.seconds:.1f} s"
    searched = result.variant.search_seconds
    searches = f" The recipe's searches took {searched:.1f} s, once." if searched >= 1 else ""
    text = f"Sampling, measured here: full precision {reference}, quantized {result.quantized.seconds:.1f} s.{searches}"
    if result.variant.engine == "simulate":
        text += (
            " The quantized clip is simulated (integer codes, computed with in floating point), so its time says"
            " nothing about real low-bit speed."
        )
    else:
        text += f" Arithmetic: {result.variant.arithmetic}; the Speed tab compares a step alone."
        if result.reference.settings.steps != result.variant.steps:
            text += f" The tables are for {result.variant.steps} steps, so most steps computed the time path instead."
    return f"{text} Scores are computed on raw frames."


def _snippet(
    name: str, recipe: Recipe, prompt: str, seed: float | None, steps: float, scale: float, engine: str
) -> str:
    """Python that does what the Generate button does."""
    known = RECIPES.get(recipe.name) == recipe
    make = f"get_recipe({recipe.name!r})" if known else f"Recipe.from_dict({recipe.to_dict()!r})"
    statistics = "embedded_statistics(model) or calibrate(model, calibration_prompts(model))"
    integers = "\nvariant = in_integers(variant)" if engine == "int8" else ""
    return f"""from qvd_core import *

model = load({name!r})
recipe = {make}
variant = quantize(model, recipe, {statistics if recipe.needs_statistics else "None"}){integers}
settings = default_settings(
    model, {prompt!r},
    seed={int(seed or 0)}, steps={int(steps)}, guidance_scale={float(scale)},
)
scores = compare(generate(model, settings), generate(variant, settings))
print(scores.psnr_db, scores.ssim)
"""
