"""What scripts may call: the product's verb as an API endpoint, with plain values in and out."""

from __future__ import annotations

from typing import Any

import gradio as gr

from qvd_core.recipe import get_recipe
from ui.comparison_run import Request, run_comparison
from ui.errors import shown
from ui.registry import Registry


def add_endpoints(registry: Registry) -> None:
    """Add `/compare` to the demo being built; runs queue behind those of the page."""

    @shown
    def compare(
        prompt: str,
        recipe: str = "minmax-w8a8",
        model: str = "animatediff-mini",
        seed: int = 0,
        steps: int = 25,
        guidance_scale: float = 4.0,
    ) -> dict[str, Any]:
        """Sample a prompt in full precision and quantized by a named recipe, and score the difference.

        Returns psnr_db (None if identical), ssim, both by frame, and latent_error by step; simulated arithmetic.
        """
        request = Request(model, get_recipe(recipe), prompt, seed, steps, guidance_scale)
        result = run_comparison(registry, request, lambda progress: None)
        return {**result.scores.to_dict(), "recipe": result.recipe.to_dict(), "arithmetic": "simulated"}

    gr.api(compare, api_name="compare", concurrency_id="model", concurrency_limit=1)
