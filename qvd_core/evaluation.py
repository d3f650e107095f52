"""Recipes against each other on many prompts: one result per clip, kept on disk as soon as it is there.

Every prompt is sampled in full precision, once more in full precision from another seed (how far apart
unrelated clips of the same caption are: the noise floor of every measure), and under every recipe from the
same seed as the reference. `qvd_core.table` turns the results into rows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from qvd_core import __version__
from qvd_core.calibration.statistics import Statistics
from qvd_core.device import pick_device
from qvd_core.errors import QvdError
from qvd_core.metrics.networks import MetricUnavailable, find
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import Recipe
from qvd_core.recipe_checks import check_recipe
from qvd_core.sampling import Clip, Settings, StepInfo, default_settings, generate
from qvd_core.scores import compare
from qvd_core.shapeworld.checker import read_clip
from qvd_core.shapeworld.scene import SIZE, parse_caption
from qvd_core.storage import replacing
from qvd_core.variant import Variant, quantize

REFERENCE = "full precision"
NOISE_FLOOR = "full precision, other seeds"
OTHER_SEEDS = 1_000_000  # added to the reference's seed for the noise floor
FRAMES_FOR_INCEPTION = 4  # of each clip, evenly spaced: neighbours add little to a distance between sets
FORMAT = "qvd-clip-result-1"


@dataclass(frozen=True, eq=False)
class ClipResult:
    """One clip of one recipe.

    Attributes:
        recipe: its name, or `REFERENCE` or `NOISE_FLOOR`.
        number: of the prompt, 0-based; clips of one number belong together.
        prompt, seed: what was sampled.
        measures: by name, numbers of this clip: "psnr_db" (infinite for equal clips), "ssim",
            "latent_error" and "lpips" against the reference, so absent for it; "motion_smoothness",
            "frame_consistency" and "temporal_flickering" of the clip itself.
        latent_error_by_step: relative error of the latents after each step; empty for the reference.
        caption: per attribute (shape, colour, motion, texture, background) whether an image-analysis
            checker reads what the prompt says; None if the prompt is not a caption of the embedded world
            or the clip not of its size.
        seconds: measured sampling time; the quantized ones are simulated, so theirs is no speed claim.
        search_seconds: measured time of the searches that built the variant; 0 for full precision.
        features: "i3d" [400] and "inception" [4, 2048], for distances between sets of clips.
    """

    recipe: str
    number: int
    prompt: str
    seed: int
    measures: dict[str, float]
    latent_error_by_step: tuple[float, ...]
    caption: dict[str, bool] | None
    seconds: float
    search_seconds: float = 0.0
    features: dict[str, np.ndarray] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write to `path`, whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        values = asdict(self)
        features = values.pop("features")
        with replacing(path) as scratch, scratch.open("wb") as file:
            np.savez(file, values=json.dumps({"format": FORMAT, **values}), **features)

    @classmethod
    def load(cls, path: Path) -> ClipResult | None:
        """What `save` wrote; None for a file that is absent, damaged or of another kind."""
        try:
            with np.load(path, allow_pickle=False) as file:
                values = json.loads(str(file["values"]))
                if values.pop("format") != FORMAT:
                    return None
                values["latent_error_by_step"] = tuple(values["latent_error_by_step"])
                return cls(**values, features={name: file[name] for name in file.files if name != "values"})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile):
            return None


def evaluate(
    model: VideoModel,
    recipes: Sequence[Recipe],
    prompts: Sequence[str],
    *,
    statistics: Statistics | None = None,
    seed: int = 0,
    steps: int | None = None,
    networks: bool = False,
    noise_floor: bool = False,
    cache: Path | None = None,
    share: tuple[int, int] = (0, 1),
    on_step: Callable[[StepInfo], None] | None = None,
    on_result: Callable[[ClipResult], None] | None = None,
) -> list[ClipResult]:
    """Sample and measure every prompt in full precision and under every recipe, with seeds `seed`, `seed` + 1, ...

    Args:
        networks: also measure with those pretrained networks whose weights are here, see `unavailable`.
        noise_floor: also sample every prompt in full precision from another seed.
        cache: folder of results; those of the same model, recipe, settings and measures are not made again.
        share: (number, count): only every `count`-th prompt, beginning with `number`, so that several
            processes with one cache divide the work.
        on_result: called with every result, new or cached.

    Raises:
        QvdError: no prompts; or what `quantize` and `generate` raise.
    """
    if not prompts:
        raise QvdError("Evaluation needs at least one prompt.")
    names = [REFERENCE, *(recipe.name for recipe in recipes)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise QvdError(f"Results are kept by name, and {', '.join(twice)} occurs twice; rename one recipe.")
    for chosen in recipes:
        check_recipe(model, chosen, statistics)
    measuring = _Measures(model.device.name if networks else None)
    provenance = {
        "version": __version__,
        "model": model.fingerprint,
        "measures": sorted(measuring.networks),
        "statistics": None if statistics is None else asdict(statistics.run),
    }
    variants: dict[str, Variant] = {}
    results: list[ClipResult] = []

    def sampled(recipe: Recipe | None, settings: Settings) -> Clip:
        if recipe is None:
            return generate(model, settings, on_step)
        if recipe.name not in variants:
            variants[recipe.name] = quantize(model, recipe, statistics)
        return generate(variants[recipe.name], settings, on_step)

    for number in range(share[0], len(prompts), share[1]):
        plan = default_settings(model, prompts[number], seed=seed + number, steps=steps)
        other = default_settings(model, prompts[number], seed=seed + number + OTHER_SEEDS, steps=steps)
        jobs: list[tuple[str, Recipe | None, Settings]] = [(REFERENCE, None, plan)]
        jobs += [(NOISE_FLOOR, None, other)] if noise_floor else []
        jobs += [(recipe.name, recipe, plan) for recipe in recipes]
        reference: Clip | None = None
        for name, recipe, settings in jobs:
            path = None if cache is None else cache / _file_name(name, number, recipe, settings, provenance)
            result = None if path is None else ClipResult.load(path)
            if result is None:
                if reference is None:
                    reference = generate(model, plan, on_step)
                clip = reference if name == REFERENCE else sampled(recipe, settings)
                searched = variants[name].search_seconds if name in variants else 0.0
                result = measuring.result(name, number, clip, reference, searched)
                if path is not None:
                    result.save(path)
            results.append(result)
            if on_result is not None:
                on_result(result)
    return results


def other_processes(device: str) -> Any:
    """The processes `accelerate launch` or `torchrun` started this one among, as PartialState; None if alone.

    Raises:
        QvdError: the others cannot be found, so that all would do the same work.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        return None
    from accelerate import PartialState

    found = PartialState(cpu=pick_device(device).name == "cpu")
    if found.num_processes != count:
        raise QvdError(f"This is one of {count} processes, but accelerate finds {found.num_processes}.")
    return found


def evaluate_together(
    processes: Any, model: VideoModel, recipes: Sequence[Recipe], prompts: Sequence[str], **choices: Any
) -> list[ClipResult]:
    """`evaluate` with the prompts shared out over `processes`; the main one returns all results, others their own.

    Raises:
        QvdError: there is no cache to meet in; or as `evaluate`.
    """
    if choices.get("cache") is None:
        raise QvdError("Several processes meet in a folder of results: pass --out or --cache.")
    share = (processes.process_index, processes.num_processes)
    own = evaluate(model, recipes, prompts, share=share, **choices)
    processes.wait_for_everyone()
    if not processes.is_main_process:
        return own
    return evaluate(model, recipes, prompts, **choices | {"on_result": None})


def unavailable() -> dict[str, str]:
    """Measures that need a network whose weights are not here, and what to do about it."""
    reasons = {}
    for measure, network in NETWORK_OF.items():
        try:
            find(network)
        except MetricUnavailable as error:
            reasons[measure] = str(error)
    return reasons


NETWORK_OF = {
    "i3d": "I3D-K400",
    "inception": "InceptionV3-2015",
    "lpips": "LPIPS-AlexNet",
    "motion_smoothness": "RIFE-HDv3",
    "frame_consistency": "MobileNetV2-IN1K",
}
"""Which pretrained network each measure needs."""


class _Measures:
    """All that is measured on a clip; networks only with a device to run them on."""

    def __init__(self, device: str | None):
        self.device = device or "cpu"
        self.networks = set() if device is None else set(NETWORK_OF) - set(unavailable())

    def result(self, recipe: str, number: int, clip: Clip, reference: Clip, search_seconds: float) -> ClipResult:
        measures: dict[str, float] = {}
        latent_error: tuple[float, ...] = ()
        if clip is not reference:
            # The noise floor differs from its reference in the seed alone, on purpose.
            scores = compare(reference, Clip(clip.frames, clip.latents_by_step, reference.settings, clip.seconds))
            latent_error = scores.latent_error
            measures |= {"psnr_db": scores.psnr_db, "ssim": scores.ssim, "latent_error": latent_error[-1]}
        measures |= self._by_networks(clip, reference)
        scene = parse_caption(clip.settings.prompt)
        readable = clip.frames.shape[0] > 1 and clip.frames.shape[1:3] == (SIZE, SIZE)  # what the checker knows
        return ClipResult(
            recipe=recipe,
            number=number,
            prompt=clip.settings.prompt,
            seed=clip.settings.seed,
            measures=measures,
            latent_error_by_step=latent_error,
            caption=read_clip(clip.frames).agreement(scene) if scene is not None and readable else None,
            seconds=clip.seconds,
            search_seconds=search_seconds,
            features=self._features(clip),
        )

    def _by_networks(self, clip: Clip, reference: Clip) -> dict[str, float]:
        from qvd_core.metrics.lpips import lpips_by_frame
        from qvd_core.metrics.motion import frame_consistency, motion_smoothness, temporal_flickering

        wanted: dict[str, Callable[[], float]] = {
            "temporal_flickering": lambda: temporal_flickering(clip.frames),
            "lpips": lambda: float(np.mean(lpips_by_frame(reference.frames, clip.frames, device=self.device))),
            "motion_smoothness": lambda: motion_smoothness(clip.frames, self.device),
            "frame_consistency": lambda: frame_consistency(clip.frames, self.device),
        }
        if clip is reference:
            del wanted["lpips"]
        found = {}
        for name, measure in wanted.items():
            if name in self.networks or name not in NETWORK_OF:
                try:
                    found[name] = measure()
                except MetricUnavailable:  # too few or too small frames for this one
                    continue
        return found

    def _features(self, clip: Clip) -> dict[str, np.ndarray]:
        from qvd_core.metrics.i3d import i3d_features
        from qvd_core.metrics.inception import inception_features

        picked = np.linspace(0, len(clip.frames) - 1, min(FRAMES_FOR_INCEPTION, len(clip.frames))).round().astype(int)
        wanted = {
            "i3d": lambda: i3d_features(clip.frames[None], self.device)[0],
            "inception": lambda: inception_features(clip.frames[picked], self.device),
        }
        found = {}
        for name, features in wanted.items():
            if name in self.networks:
                try:
                    found[name] = np.asarray(features(), np.float32)
                except MetricUnavailable:
                    continue
        return found


def _file_name(name: str, number: int, recipe: Recipe | None, settings: Settings, provenance: dict[str, Any]) -> str:
    """A name that only the same model, recipe, settings, statistics and measures share."""
    key = {**provenance, "number": number, "settings": asdict(settings)}
    key |= {"statistics": None} if recipe is None else {"recipe": recipe.to_dict()}
    digest = hashlib.sha256(json.dumps([name, key], sort_keys=True).encode()).hexdigest()[:16]
    return f"{name.replace(', ', '-').replace(' ', '-')}-{settings.seed}-{digest}.npz"
