"""A whole clip, text and decoding included, in every arithmetic of this project, and how far its frames are apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qvd_core.benchmarks.inference import cast, compiled_denoiser, in_format
from qvd_core.benchmarks.timing import alternate
from qvd_core.calibration.calibrate import calibration_prompts
from qvd_core.calibration.statistics import Statistics
from qvd_core.engines.integer import in_integers
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import Recipe, get_recipe
from qvd_core.sampling import Clip, default_settings, sample
from qvd_core.scores import compare
from qvd_core.variant import quantize

RECIPE = get_recipe("minmax-w8a8")
FLOATING = {"fp32": torch.float32, "bf16": torch.bfloat16}


def benchmark_clip(
    model: VideoModel,
    statistics: Statistics | None = None,
    *,
    recipe: Recipe = RECIPE,
    repeats: int = 3,
    compiled: bool = True,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
    """Sample one clip, the model's default one, with its denoiser in floating point, simulated and in int8.

    The text encoder and the decoder are the model's own on every side.

    Args:
        statistics: for a recipe that needs them.
        recipe: of the simulated and the int8 side.
        repeats: rounds, in each of which every side makes its clip once; medians are compared.
        compiled: also floating point and int8 under torch.compile, which takes minutes.
        on_stage: told what happens next; may raise to cancel.

    Returns:
        "sides": by name, kind, median seconds and PSNR in dB to the fp32 clip (None if equal) and to the simulated one;
        "ratio_int8_to_fp32" and "ratio_int8_to_bf16", best against best.

    Raises:
        EngineError: this machine has no integer arithmetic.
    """
    simulated = quantize(model, recipe, statistics)
    denoisers: dict[str, nn.Module] = {name: in_format(model, dtype, True) for name, dtype in FLOATING.items()}
    denoisers |= {"simulated": simulated.denoiser, "int8": in_integers(simulated).denoiser}
    if compiled:
        for name, dtype in FLOATING.items():
            denoisers[f"{name}, compiled"] = compiled_denoiser(in_format(model, dtype, True))
        denoisers["int8, compiled"] = in_integers(simulated, compiled=True).denoiser
    for name, dtype in FLOATING.items():
        for denoiser in (denoisers[name], denoisers.get(f"{name}, compiled")):
            if denoiser is not None:
                _compute_in(denoiser, dtype)
    settings = default_settings(model, calibration_prompts(model, 1)[0])
    clips: dict[str, Clip] = {}

    def side(name: str) -> Callable[[], None]:
        def make() -> None:
            on_stage(name)
            clips[name] = sample(model, denoisers[name], settings)

        return make

    seconds = dict(zip(denoisers, alternate(tuple(map(side, denoisers)), repeats), strict=True))

    def best(kind: str) -> float:
        return min(value for name, value in seconds.items() if name.startswith(kind))

    def psnr(name: str, reference: str) -> float | None:
        value = compare(clips[reference], clips[name]).psnr_db
        return value if math.isfinite(value) else None

    return {
        "ratio_int8_to_fp32": best("int8") / best("fp32"),
        "ratio_int8_to_bf16": best("int8") / best("bf16"),
        "sides": {
            name: {
                "seconds": value,
                "psnr_db_to_fp32": psnr(name, "fp32"),
                "psnr_db_to_simulated": psnr(name, "simulated"),
            }
            for name, value in seconds.items()
        },
        "recipe": recipe.name,
        "steps": settings.steps,
        "model": model.spec.name,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
    }


def _compute_in(denoiser: nn.Module, dtype: torch.dtype) -> None:
    """Have `denoiser` take and give what the rest of the pipeline has, whatever it computes in."""
    given: list[torch.dtype] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given[:] = [args[0].dtype]
        return cast(args, kwargs, dtype)

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(value.to(given[0]) for value in output)
        return type(output)(**{name: value.to(given[0]) for name, value in output.items()})

    denoiser.register_forward_pre_hook(before, with_kwargs=True)
    denoiser.register_forward_hook(after)
