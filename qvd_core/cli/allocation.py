"""`allocate`: the best bits for every layer within a budget, as a recipe."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvd_core.cli.options import (
    add_model_options,
    add_size_options,
    add_statistics_option,
    clip_settings,
    find_statistics,
    load_model,
    progress_bar,
    read_recipe,
)
from qvd_core.cost import site_costs
from qvd_core.errors import QvdError
from qvd_core.recipe import Recipe
from qvd_core.storage import replacing

if TYPE_CHECKING:
    from qvd_core.allocation import Allocation
    from qvd_core.models.loader import VideoModel
    from qvd_core.sensitivity import Bits, Sensitivity

WEIGHT_BITS = (3, 4, 5, 6, 8)
"""What weights may have by default where only bytes are limited; inputs then keep their bits, which cost no bytes."""

WORDS = {
    "proxy": "layer outputs, estimated",
    "scaled": "the denoiser's prediction, estimated from a measurement at one pair of bits",
    "measured": "the denoiser's prediction, measured",
}


def add_options(command: argparse.ArgumentParser) -> None:
    add_model_options(command)
    command.add_argument("--recipe", default="minmax-w8a8", help="a name, or a JSON file (default: %(default)s)")
    command.add_argument("--max-mb", type=float, help="million bytes of weights, at most")
    command.add_argument("--max-gbops", type=float, help="billion bit operations of one denoiser call, at most")
    command.add_argument(
        "--bits",
        help="what to choose from, such as w4a8,w6a8,float (default: 3 to 8 bits of weights at the recipe's inputs,"
        " 4 to 8 bits of both with --max-gbops; and float)",
    )
    command.add_argument(
        "--measured",
        choices=("once", "all"),
        nargs="?",
        const="once",
        help="run the denoiser with every layer replaced at the fewest bits, or at all of them; takes minutes",
    )
    command.add_argument(
        "--calls", type=int, default=3, help="denoiser calls of each measurement (default: %(default)s)"
    )
    command.add_argument("--prompt", help="of the clip measured on (default: one of the model's own)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--steps", type=int, help="default: the model's")
    add_size_options(command)
    add_statistics_option(command)
    command.add_argument("--out", type=Path, help="write the recipe to this .json file, which --recipe takes")


def allocate(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core import allocation

    recipe = read_recipe(options.recipe)
    choices = _choices(options, recipe)
    if options.out is not None and options.out.suffix != ".json":
        raise QvdError(f"--out {options.out} is no .json file, and --recipe would not take it.")
    budgets = {
        "max_bytes": None if options.max_mb is None else options.max_mb * 1e6,
        "max_bops": None if options.max_gbops is None else options.max_gbops * 1e9,
    }
    allocation.check_budgets(**budgets)
    model = load_model(options)
    statistics = find_statistics(options, model, needed=True)
    assert statistics is not None
    sensitivity = _sensitivity(options, model, recipe, statistics, choices)
    found = allocation.allocate(model.sites, sensitivity, statistics.macs, steps=statistics.run.steps, **budgets)
    if options.out is not None:
        with replacing(options.out) as scratch:
            scratch.write_text(json.dumps(found.recipe.to_dict(), indent=2) + "\n")
    result = {
        "recipe": found.recipe.to_dict(),
        "kind": sensitivity.kind,
        "error": found.error,
        "bound": found.bound,
        "bytes": found.bytes,
        "bops": found.bops,
        "bits": {name: list(bits) for name, bits in found.bits.items()},
        "seconds": round(sensitivity.seconds, 2),
    }
    return result, _in_words(options, model, statistics.macs, sensitivity, found)


def _choices(options: argparse.Namespace, recipe: Recipe) -> tuple[Bits, ...]:
    """Raises QvdError: `--bits` names something else than bits, or bits out of range."""
    from qvd_core.sensitivity import CHOICES, FLOAT, at_bits_everywhere

    if options.bits is None:
        if options.max_gbops is not None:
            return CHOICES
        inputs = None if recipe.activations is None else recipe.activations.bits
        return *((bits, inputs) for bits in WEIGHT_BITS), FLOAT
    choices: list[Bits] = []
    for name in options.bits.split(","):
        found = re.fullmatch(r"w(\d+|float)a(\d+|float)|float", name.strip())
        if found is None:
            raise QvdError(f"--bits {options.bits!r}: {name!r} is neither bits, such as w4a8 or w4afloat, nor float.")
        weights, inputs = (None if bits in (None, "float") else int(bits) for bits in found.groups())
        at_bits_everywhere(recipe, (weights, inputs))  # refuses, before the model is loaded
        choices.append((weights, inputs))
    return tuple(dict.fromkeys(choices))


def _sensitivity(
    options: argparse.Namespace, model: VideoModel, recipe: Recipe, statistics: Any, choices: tuple[Bits, ...]
) -> Sensitivity:
    from qvd_core.calibration.calibrate import calibration_prompts
    from qvd_core.sensitivity import measured_sensitivity, proxy_sensitivity, scaled_sensitivity

    def measured(at: tuple[Bits, ...]) -> Sensitivity:
        options.prompt = options.prompt or calibration_prompts(model)[0]
        options.negative_prompt = options.guidance_scale = None
        settings = clip_settings(options, model)
        with progress_bar(None, "measuring") as bar:

            def done(number: int, total: int) -> None:
                bar.total = total
                bar.update(number - bar.n)

            return measured_sensitivity(model, recipe, statistics, settings, at, calls=options.calls, on_call=done)

    if options.measured == "all":
        return measured(choices)
    proxy = proxy_sensitivity(model, recipe, statistics, choices)
    return proxy if options.measured is None else scaled_sensitivity(proxy, measured((min(choices, key=_rank),)))


def _in_words(
    options: argparse.Namespace,
    model: VideoModel,
    macs: Mapping[str, int],
    sensitivity: Sensitivity,
    found: Allocation,
) -> str:
    of_what = WORDS[sensitivity.kind]
    costs = site_costs(model.sites, found.recipe, macs)
    before = sum(cost.bytes_before for cost in costs), sum(cost.bops_before or 0 for cost in costs)
    lines = [
        f"{found.recipe.name}: {found.bytes / 1e6:.2f} MB of weights and {(found.bops or 0) / 1e9:.4g} GBOPs per call,"
        f" of {before[0] / 1e6:.2f} and {before[1] / 1e9:.4g} in fp16 (computed)",
        f"summed relative squared error of {of_what}: {found.error:.3g}; no choice within the budget is below"
        f" {found.bound:.3g}",
    ]
    by_role: dict[str, Counter[Bits]] = {}
    for site in model.sites:
        by_role.setdefault(site.role, Counter())[found.bits[site.name]] += 1
    for role, counts in by_role.items():
        lines.append(
            f"  {role:<26} " + ", ".join(f"{counts[bits]} × {_short(bits)}" for bits in sorted(counts, key=_rank))
        )
    if options.out is not None:
        lines.append(f"{options.out}: the recipe; pass it as --recipe {options.out}")
    return "\n".join(lines)


def _rank(bits: Bits) -> tuple[int, int]:
    return bits[0] or 16, bits[1] or 16


def _short(bits: Bits) -> str:
    weights, inputs = (b or "float" for b in bits)
    return "float" if weights == inputs == "float" else f"w{weights}a{inputs}"
