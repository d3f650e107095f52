"""Tab "Compare": the same prompt and seed in full precision and quantized, frame by frame."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from analysis.architecture import by_role, in_words, total
from qvd_core.cost import site_costs
from qvd_core.errors import Cancelled, QvdError
from qvd_core.models.catalog import CATALOG
from qvd_core.recipe import RECIPES, Recipe
from ui import panels
from ui.comparator import comparator, comparison_payload, preview_payload
from ui.comparison_run import Progress, Request, Result, run_comparison
from ui.errors import shown
from ui.registry import Registry
from ui.running import Runs

DEFAULT = CATALOG["animatediff-mini"]


class Downloads:
    """Files a session may download, in a folder of its own that goes with the session."""

    def __init__(self) -> None:
        self._folders: dict[str, Path] = {}

    def folder(self, session: str) -> Path:
        if session not in self._folders:
            self._folders[session] = Path(tempfile.mkdtemp(prefix="qvd-studio-"))
        return self._folders[session]

    def forget(self, session: str) -> None:
        folder = self._folders.pop(session, None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def compare_tab(registry: Registry, runs: Runs, downloads: Downloads, model_name: gr.State, recipe: gr.State) -> None:
    """Build the tab; it compares the present model under the present recipe."""
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            prompt = gr.Textbox(
                DEFAULT.example_prompts[0], label="Prompt", lines=2, max_lines=4, elem_id="compare-prompt"
            )
            examples = gr.Dropdown(
                list(DEFAULT.example_prompts), value=None, label="or take an example", elem_id="compare-examples"
            )
        with gr.Column(scale=2, min_width=260):
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90, elem_id="compare-seed")
                steps = gr.Slider(1, 50, DEFAULT.steps, step=1, label="Steps", min_width=140, elem_id="compare-steps")
            guidance = gr.Slider(1, 12, DEFAULT.guidance_scale, step=0.5, label="Guidance scale")
    with gr.Row():
        start = gr.Button("Generate", variant="primary", scale=3, elem_id="compare-generate")
        stop = gr.Button("Cancel", variant="stop", scale=1, interactive=False, elem_id="compare-cancel")
    status = gr.HTML(elem_id="compare-status", elem_classes="qvd-flush")
    panel = comparator(elem_id="compare-panel")
    scores = gr.HTML(elem_id="compare-scores", elem_classes="qvd-flush")
    with gr.Row(visible=False) as files:
        downloads_shown = [
            gr.DownloadButton("Full precision (mp4)", size="sm"),
            gr.DownloadButton("Quantized (mp4)", size="sm"),
            gr.DownloadButton("Scores (json)", size="sm"),
        ]
    with gr.Accordion("The same in Python", open=False):
        snippet = gr.Code(language="python", show_label=False, elem_id="compare-snippet")

    inputs: list[Any] = [model_name, recipe, prompt, seed, steps, guidance]
    outputs = [panel, status, scores, start, stop, files, *downloads_shown]
    nothing_to_download = [gr.skip()] * 4

    @shown
    def run(
        name: str,
        current: Recipe,
        text: str,
        number: float | None,
        step_count: float,
        scale: float,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        session = str(request.session_hash)
        wanted = Request(name, current, text, int(number or 0), int(step_count), float(scale))

        def job(report: Callable[[Progress], None]) -> Result:
            return run_comparison(registry, wanted, report)

        busy = [gr.update(interactive=False), gr.update(interactive=True)]
        idle = [gr.update(interactive=True), gr.update(interactive=False)]
        yield [gr.skip(), panels.progress_bar("Getting ready…", 0), gr.skip(), *busy, *nothing_to_download]
        try:
            for update in runs.stream(session, job):
                if isinstance(update, Progress):
                    picture = gr.skip() if update.picture is None else preview_payload(update.picture, update.text)
                    bar = panels.progress_bar(update.text, update.share)
                    yield [picture, bar, gr.skip(), gr.skip(), gr.skip(), *nothing_to_download]
                else:
                    written = _write_files(downloads.folder(session), update)
                    cards, timing = _score_cards(update), panels.note(_timing(update))
                    yield [_payload(update), timing, cards, *idle, gr.update(visible=True), *written]
        except QvdError as error:
            # The page must be usable again before the message is shown.
            text = "Cancelled; nothing was kept." if isinstance(error, Cancelled) else str(error)
            yield [preview_payload(None, text), panels.note(text), gr.skip(), *idle, *nothing_to_download]
            if not isinstance(error, Cancelled):
                raise

    def cancel(request: gr.Request) -> None:
        runs.cancel(str(request.session_hash))

    start.click(
        run,
        inputs,
        outputs,
        concurrency_id="model",
        concurrency_limit=1,
        show_progress="hidden",
        api_visibility="private",
    )
    stop.click(cancel, queue=False, api_visibility="private")
    examples.input(lambda chosen: chosen or gr.skip(), examples, prompt, queue=False, api_visibility="private")
    gr.on(
        [component.change for component in inputs],
        _snippet,
        inputs,
        snippet,
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )


def _payload(result: Result) -> dict[str, Any]:
    from qvd_core.video import to_uint8

    return comparison_payload(
        to_uint8(result.reference.frames),
        to_uint8(result.quantized.frames),
        fps=result.model.spec.fps,
        labels=("Full precision", f"Quantized · {result.recipe.name}"),
        psnr_by_frame=result.scores.psnr_by_frame,
        ssim_by_frame=result.scores.ssim_by_frame,
    )


def _score_cards(result: Result) -> str:
    scores = result.scores
    equal = math.isinf(scores.psnr_db)
    last = scores.latent_error[-1]
    size = total(by_role(site_costs(result.model.sites, result.recipe, None)))
    return panels.cards(
        [
            ("PSNR", "identical" if equal else f"{scores.psnr_db:.1f} dB", "of the whole clip; higher is closer"),
            ("SSIM", f"{scores.ssim:.4f}", "mean over frames; 1 is identical"),
            ("Latent error", f"{last:.1%}", f"of the latents' size after {len(scores.latent_error)} steps"),
            (
                "Weights, computed",
                in_words(size.bytes_after, "B"),
                f"{in_words(size.bytes_before, 'B')} in fp16; {size.bytes_before / size.bytes_after:.2f}× smaller",
            ),
        ]
    )


def _timing(result: Result) -> str:
    reference = "reused from an earlier run" if result.reused else f"{result.reference.seconds:.1f} s"
    return (
        f"Sampling, measured here: full precision {reference}, quantized {result.quantized.seconds:.1f} s."
        " The quantized clip is simulated (integer codes, computed with in floating point), so its time says"
        " nothing about real low-bit speed. Scores are computed on raw frames."
    )


def _write_files(folder: Path, result: Result) -> list[str]:
    """The two clips and their scores as files; replaces those of the session's previous run."""
    from qvd_core.storage import replacing
    from qvd_core.video import write_video

    paths = [folder / name for name in ("reference.mp4", "quantized.mp4", "scores.json")]
    write_video(result.reference.frames, paths[0], result.model.spec.fps)
    write_video(result.quantized.frames, paths[1], result.model.spec.fps)
    values = {
        **result.scores.to_dict(),
        "recipe": result.recipe.to_dict(),
        "settings": asdict(result.reference.settings),
        "model": result.model.spec.name,
        "arithmetic": "simulated",
    }
    with replacing(paths[2]) as scratch:
        scratch.write_text(json.dumps(values, indent=2) + "\n")
    return [str(path) for path in paths]


def _snippet(name: str, recipe: Recipe, prompt: str, seed: float | None, steps: float, scale: float) -> str:
    """Python that does what the Generate button does."""
    known = RECIPES.get(recipe.name) == recipe
    make = f"get_recipe({recipe.name!r})" if known else f"Recipe.from_dict({recipe.to_dict()!r})"
    return f"""from qvd_core import *

model = load({name!r})
recipe = {make}
statistics = embedded_statistics(model) or calibrate(model, calibration_prompts(model))
variant = quantize(model, recipe, statistics)
settings = default_settings(
    model, {prompt!r},
    seed={int(seed or 0)}, steps={int(steps)}, guidance_scale={float(scale)},
)
scores = compare(generate(model, settings), generate(variant, settings))
print(scores.psnr_db, scores.ssim)
"""
