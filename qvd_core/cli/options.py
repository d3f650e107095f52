"""Options that several commands share, and what they stand for: models, clips, recipes, statistics."""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvd_core.errors import QvdError
from qvd_core.recipe import RECIPES, Recipe, get_recipe

if TYPE_CHECKING:
    from tqdm import tqdm

    from qvd_core.calibration.statistics import Statistics
    from qvd_core.models.loader import VideoModel
    from qvd_core.variant import Variant

DEFAULT_MODEL = "animatediff-mini"


def add_model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a name, a diffusers folder or owner/name (default: %(default)s)",
    )
    command.add_argument("--revision", help="branch, tag or commit of a hub model")
    command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def add_clip_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--prompt", required=True)
    command.add_argument("--negative-prompt", default="")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--steps", type=int, help="default: the model's")
    command.add_argument("--guidance-scale", type=float, help="default: the model's")
    add_size_options(command)


def add_size_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--frames", type=int, help="default: the model's")
    command.add_argument("--height", type=int, help="pixels (default: the model's)")
    command.add_argument("--width", type=int, help="pixels (default: the model's)")


def add_statistics_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--statistics", type=Path, help="calibration statistics (default: those shipped, else calibrate now)"
    )


def add_engine_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--engine",
        default="simulate",
        choices=("simulate", "int8", "int8-packed"),
        help="how the quantized model computes: any bits in floating point, in integers, or in integers with weights"
        " that stay packed, which takes the least memory and is slower (default: %(default)s)",
    )


def build_variant(options: argparse.Namespace, model: VideoModel, recipe: Recipe) -> Variant:
    from qvd_core.variant import quantize

    return on_engine(options, quantize(model, recipe, find_statistics(options, model, recipe.needs_statistics)))


def on_engine(options: argparse.Namespace, variant: Variant) -> Variant:
    from qvd_core.engines.integer import in_integers

    if options.engine == "simulate":
        return variant
    return in_integers(variant, packed=options.engine == "int8-packed")


def load_model(options: argparse.Namespace) -> VideoModel:
    from qvd_core.models.loader import load

    return load(options.model, revision=options.revision, device=options.device)


def clip_settings(options: argparse.Namespace, model: VideoModel) -> Any:
    from qvd_core.sampling import default_settings

    names = ("negative_prompt", "seed", "steps", "guidance_scale", "frames", "height", "width")
    return default_settings(model, options.prompt, **{name: getattr(options, name) for name in names})


def read_recipe(text: str) -> Recipe:
    """A named recipe, or the one in a JSON file."""
    if not text.endswith(".json"):
        return get_recipe(text)
    try:
        return Recipe.from_dict(json.loads(Path(text).read_text()))
    except (OSError, ValueError) as error:
        raise QvdError(f"Cannot read the recipe {text}: {error}") from error


def read_recipes(text: str) -> list[Recipe]:
    """Recipes named in a list; a pattern stands for all that match it."""
    found: dict[str, Recipe] = {}
    for name in filter(None, text.split(",")):
        known = fnmatch.filter(RECIPES, name)
        found |= {match: RECIPES[match] for match in known} if known else {name: read_recipe(name)}
    return list(found.values())


def find_statistics(options: argparse.Namespace, model: VideoModel, needed: bool) -> Statistics | None:
    """Statistics from the given file, or those shipped, or a calibration run now; None if not given nor needed.

    Such a run has the model's own number of steps, as in the app, and the clip size that was asked for.
    """
    from qvd_core.calibration.calibrate import calibration_prompts, embedded_statistics
    from qvd_core.calibration.statistics import Statistics

    if options.statistics is not None:
        return Statistics.load(options.statistics)
    if not needed:
        return None
    shipped = embedded_statistics(model)
    if shipped is not None:
        return shipped
    print(f"{model.spec.name} ships no statistics; calibrating now", file=sys.stderr)
    return run_calibration(model, calibration_prompts(model), options, None, 1000)


def run_calibration(
    model: VideoModel, prompts: Sequence[str], options: argparse.Namespace, steps: int | None, seed: int
) -> Statistics:
    from qvd_core.calibration.calibrate import calibrate

    with progress_bar(None, "calibrating") as bar:

        def step_ended(number: int, count: int, info: Any) -> None:
            bar.total = count * info.total
            advance(bar)

        size = {name: getattr(options, name, None) for name in ("frames", "height", "width")}
        return calibrate(model, prompts, steps=steps, seed=seed, on_step=step_ended, **size)


def progress_bar(total: int | None, text: str) -> tqdm[Any]:
    from tqdm import tqdm

    return tqdm(total=total, desc=text, disable=None, leave=False, file=sys.stderr)


def advance(bar: tqdm[Any]) -> None:
    bar.update()
