"""What calibration, searches and simulation cost, as ratios to plain sampling measured in the same run.

Alternating and by medians, since a machine's speed drifts. Peak memory is that of the run itself in a fresh process for
each side on a CPU, with all that is loaded and without what loading took; of the allocator on CUDA.
"""

from __future__ import annotations

import multiprocessing
import statistics as mathematics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from qvd_core.benchmarks.memory import bytes_before_and_at_most
from qvd_core.benchmarks.timing import alternate, denoiser_inputs
from qvd_core.calibration.calibrate import calibrate, calibration_prompts
from qvd_core.calibration.statistics import Statistics
from qvd_core.errors import OutOfMemory
from qvd_core.models.catalog import CATALOG
from qvd_core.models.loader import VideoModel, load
from qvd_core.recipe import get_recipe
from qvd_core.sampling import default_settings, generate
from qvd_core.variant import quantize

SEARCHING = "qvd-w8a8"
SIMULATED = "qvd-w4a6"


def benchmark_calibration(
    model: VideoModel,
    *,
    prompts: int = 2,
    repeats: int = 3,
    compiled: bool = True,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
    """Measure calibration, parameter search and simulated arithmetic against plain sampling.

    Args:
        prompts: clips that each calibration and each sampling run makes.
        repeats: runs of each side; medians are compared.
        compiled: also compare simulated and floating-point steps under torch.compile.
        on_stage: told what is about to be measured.

    Returns:
        "ratio_calibration_to_sampling", "ratio_peak_memory", "ratio_search_to_sampling",
        "ratio_simulated_to_float" with the seconds and bytes behind them; "ratio_simulated_to_float_compiled"
        is None with "compiled_failed" saying why where torch.compile does not work.

    Raises:
        OutOfMemory: a process that measures peak memory beside this one was killed.
    """
    texts = calibration_prompts(model, prompts)
    plans = [default_settings(model, text, seed=number) for number, text in enumerate(texts)]
    on_stage("calibration against sampling")
    calibrated: list[Statistics] = []
    sampling, calibration = alternate(
        (lambda: [generate(model, plan) for plan in plans], lambda: calibrated.append(calibrate(model, texts))),
        repeats,
    )
    on_stage("peak memory")
    memory = {kind: _peak_memory(kind, model, texts) for kind in ("sampling", "calibration")}

    on_stage("parameter search")
    searches = [quantize(model, get_recipe(SEARCHING), calibrated[0]).search_seconds for _ in range(repeats + 1)][1:]
    search = mathematics.median(searches)

    variant = quantize(model, get_recipe(SIMULATED), calibrated[0])
    inputs = denoiser_inputs(model)

    def call(denoiser: Any) -> Callable[[], Any]:
        return lambda: denoiser(*inputs[0], **inputs[1])

    on_stage("simulated against floating point")
    with torch.inference_mode():
        floating, simulated = alternate((call(model.denoiser), call(variant.denoiser)), 8 * repeats)
    result: dict[str, Any] = {
        "ratio_calibration_to_sampling": calibration / sampling,
        "ratio_peak_memory": _ratio(memory["calibration"], memory["sampling"]),
        "ratio_search_to_sampling": search / (sampling / prompts),
        "ratio_simulated_to_float": simulated / floating,
        "seconds": {
            "sampling": sampling,
            "calibration": calibration,
            "search": search,
            "step_float": floating,
            "step_simulated": simulated,
        },
        "peak_memory_bytes": memory,
        "recipes": {"search": SEARCHING, "simulated": SIMULATED},
        "prompts": prompts,
        "steps": plans[0].steps,
        "device": str(model.device),
    }
    if compiled:
        on_stage("the same, compiled")
        try:
            with torch.inference_mode():
                both = (torch.compile(model.denoiser), torch.compile(variant.denoiser))
                floating, simulated = alternate((call(both[0]), call(both[1])), 8 * repeats)
            result["ratio_simulated_to_float_compiled"] = simulated / floating
            result["seconds"] |= {"step_float_compiled": floating, "step_simulated_compiled": simulated}
        except Exception as error:  # torch.compile fails in many ways: no compiler, an unsupported call, ...
            result["ratio_simulated_to_float_compiled"] = None
            result["compiled_failed"] = str(error).strip().splitlines()[0]
    return result


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one / other


def _peak_memory(kind: str, model: VideoModel, prompts: list[str]) -> int | None:
    """Bytes at most in use while sampling or calibrating `prompts`; None where that is not counted."""
    if model.device.name == "cuda":
        return _peak_of_run(kind, model, prompts)
    spec = model.spec
    source = (spec.name, None) if spec.name in CATALOG else (spec.source, spec.revision)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            return fresh.submit(_peak_of_fresh_process, kind, *source, prompts, torch.get_num_threads()).result()
    except BrokenProcessPool as error:
        raise OutOfMemory(
            f"The process that measured the peak memory of {kind} was ended from outside, most likely for lack of"
            " memory beside this one. Close other programs, or measure a smaller model."
        ) from error


def _peak_of_fresh_process(
    kind: str, source: str, revision: str | None, prompts: list[str], threads: int
) -> int | None:
    torch.set_num_threads(threads)
    return _peak_of_run(kind, load(source, revision=revision, device="cpu"), prompts)


def _peak_of_run(kind: str, model: VideoModel, prompts: list[str]) -> int | None:
    found = bytes_before_and_at_most(lambda: _run(kind, model, prompts), model.device.name)
    return None if found is None else found[1]


def _run(kind: str, model: VideoModel, prompts: list[str]) -> None:
    if kind == "calibration":
        calibrate(model, prompts)
        return
    for number, prompt in enumerate(prompts):
        generate(model, default_settings(model, prompt, seed=number))
