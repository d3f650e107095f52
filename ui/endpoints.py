"""What scripts may call: the product's verb as an API endpoint, with plain values in and out."""

from __future__ import annotations

from typing import Any

import gradio as gr

from qvd_core.errors import GenerationError
from qvd_core.recipe import get_recipe
from ui.comparison_run import Request, run_comparison
from ui.errors import shown
from ui.registry import Registry

MOST_STEPS = 100


def add_endpoints(registry: Registry) -> None:
    """Add `/compare` to the demo being built; runs queue behind those of the page."""

    @shown
    def compare(
        prompt: str,
        recipe: str = "minmax-w8a8",
        model: str = "animatediff-mini",
        seed: int = 0,
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> dict[str, Any]:
        """Sample a prompt in full precision and quantized by a named recipe, and score the difference.

        None takes the model's own default. Returns psnr_db (None if identical), ssim, both by frame, latent_error
        by step, and what they were made with; the arithmetic is simulated.
        """
        from qvd_core.report import comparison_report

        if steps is not None and steps > MOST_STEPS:
            raise GenerationError(f"steps = {steps} is more than this server takes; choose at most {MOST_STEPS}.")
        request = Request(model, get_recipe(recipe), prompt, seed, steps, guidance_scale)
        result = run_comparison(registry, request, lambda progress: None)
        return comparison_report(result.variant, result.reference, result.quantized, result.scores)

    gr.api(compare, api_name="compare", concurrency_id="model", concurrency_limit=1)
