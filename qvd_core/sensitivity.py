"""How much each site suffers at each bit width: estimated from statistics, or measured by running the denoiser.

Both give a table of squared errors by site and pair of bits, every site quantized alone, which `allocation`
turns into a recipe. The estimate is the error a layer makes in its own output (`token_error`): it costs as
much as building one variant per pair of bits, and knows nothing of what the rest of the network makes of the
error. The measurement is the error of the denoiser's prediction: the effect itself, at the price of many calls.

What the network makes of an error depends on the site, by many orders of magnitude, and hardly on the bits. So
`scaled_sensitivity` takes the ratio of the two errors from a measurement at one pair of bits, and everything
else from the estimate.

Layers transformed, searched and quantized by the recipe are those that `quantize` builds with the same bits
everywhere; a table is made from one such variant per pair of bits.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from qvd_core.calibration.statistics import Statistics
from qvd_core.errors import GenerationError, RecipeError
from qvd_core.formats import Override, Tabulated
from qvd_core.models.loader import VideoModel
from qvd_core.models.sites import Site
from qvd_core.recipe import TIME_PATH, Recipe
from qvd_core.replay import Replay, record_calls
from qvd_core.sampling import Settings, check_settings
from qvd_core.token_error import token_errors
from qvd_core.variant import quantize

Bits = tuple[int | None, int | None]
"""Bits of weights and of inputs; None stands for floating point."""

FLOAT: Bits = (None, None)
CHOICES: tuple[Bits, ...] = ((4, 4), (4, 6), (4, 8), (6, 6), (6, 8), (8, 8), FLOAT)

Progress = Callable[[int, int], None]
"""Called with how many of how many parts are done; raising from it (`Cancelled`, say) ends the work at once."""


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What quantizing each site alone costs.

    Attributes:
        kind: "proxy", relative squared error of the site's own output; "measured", of the denoiser's; or
            "scaled", an estimate of the latter.
        recipe: how sites are quantized, whatever their bits.
        errors: by site and pair of bits, 0 or more, dimensionless; 0 in floating point. A site whose bits the
            recipe fixes, by an exception or a table of the time path, has those only.
        seconds: measured time it took.
    """

    kind: str
    recipe: Recipe
    errors: dict[str, dict[Bits, float]]
    seconds: float


def at_bits_everywhere(recipe: Recipe, bits: Bits) -> Recipe:
    """`recipe` with these bits at every site, but for its own exceptions."""
    return dataclasses.replace(
        recipe, name=f"{recipe.name} at {_in_words(bits)}", overrides=(Override("*", *bits), *recipe.overrides)
    )


def bits_of(recipe: Recipe, site: Site) -> Bits:
    """The bits `recipe` gives `site`."""
    weights, activations = recipe.formats(site.name, site.role)
    return (None if weights is None else weights.bits), (None if activations is None else activations.bits)


def fixed_bits(recipe: Recipe, site: Site) -> Bits | None:
    """The bits `recipe` insists on at `site`; None if they are free to choose."""
    tabulated = isinstance(recipe.temporal, Tabulated) and site.role in TIME_PATH
    if not tabulated and not any(override.matches(site.name, site.role) for override in recipe.overrides):
        return None
    return bits_of(recipe, site)


def proxy_sensitivity(
    model: VideoModel,
    recipe: Recipe,
    statistics: Statistics,
    choices: Sequence[Bits] = CHOICES,
    on_choice: Progress | None = None,
) -> Sensitivity:
    """Estimate every site's error from the tokens that calibration kept; the denoiser does not run.

    Args:
        choices: the pairs of bits to consider.
        on_choice: called after each of them.

    Raises:
        RecipeError: there are no choices, or bits out of range.
        CalibrationError: as `quantize`, or the statistics are silent about a site.
    """
    started = time.perf_counter()
    errors = _empty_table(model, recipe, choices)
    for number, bits in enumerate(choices):
        wanted = _to_find(model, recipe, bits, number == 0)
        if wanted:
            variant = quantize(model, at_bits_everywhere(recipe, bits), statistics)
            for name, error in token_errors(variant, statistics, wanted).items():
                errors[name][wanted[name]] = error
        if on_choice is not None:
            on_choice(number + 1, len(choices))
    return Sensitivity("proxy", recipe, errors, time.perf_counter() - started)


def measured_sensitivity(
    model: VideoModel,
    recipe: Recipe,
    statistics: Statistics | None,
    settings: Settings,
    choices: Sequence[Bits] = CHOICES,
    *,
    calls: int = 3,
    on_call: Progress | None = None,
) -> Sensitivity:
    """Measure every site's error in the denoiser's prediction: |e' - e|^2 / |e|^2, a mean over a few calls.

    One clip is sampled in full precision. Then the calls chosen of it are made again with one layer replaced,
    so the inputs are those of the full-precision trajectory and errors do not add up over steps. It takes
    about sites x choices x `calls` denoiser calls, without the blocks that run before the replaced layer; `on_call`
    tells how many there are.

    Args:
        settings: the clip.
        choices: the pairs of bits to measure; floating point costs nothing.
        calls: how many of the clip's denoiser calls are made again, evenly spaced, at least 1; all if fewer.
        on_call: called after each.

    Raises:
        RecipeError: there are no choices, or bits out of range.
        GenerationError: settings the model cannot sample, fewer than one call, another number of frames than
            the recipe's grids, or steps that the recipe does not know.
        CalibrationError, OutOfMemory: as `quantize`.
    """
    started = time.perf_counter()
    check_settings(model, settings)
    if calls < 1:
        raise GenerationError(f"calls = {calls} is out of range; choose 1 or more.")
    errors = _empty_table(model, recipe, choices)
    plans = [_to_find(model, recipe, bits, number == 0) for number, bits in enumerate(choices)]
    recorded = record_calls(model, settings, calls)
    done, total = 0, len(recorded) * sum(len(plan) for plan in plans)
    for bits, plan in zip(choices, plans, strict=True):
        if not plan:
            continue
        variant = quantize(model, at_bits_everywhere(recipe, bits), statistics)
        if variant.frames not in (None, settings.frames):
            raise GenerationError(
                f"{recipe.name} has one grid for each of {variant.frames} frames, and {settings.frames} are asked for;"
                f" sample {variant.frames} frames."
            )
        for call in recorded:
            replay = Replay(model, call)
            for name, own in plan.items():
                errors[name][own] += _relative_error(replay.with_layer(variant, name), replay.exact) / len(recorded)
                done += 1
                if on_call is not None:
                    on_call(done, total)
    return Sensitivity("measured", recipe, errors, time.perf_counter() - started)


def scaled_sensitivity(proxy: Sensitivity, measured: Sensitivity) -> Sensitivity:
    """The proxy's errors, each site's multiplied by what the network was measured to make of them.

    Args:
        proxy: with the pairs of bits that are wanted.
        measured: of the same recipe, with at least one of these pairs that is not floating point.

    Raises:
        RecipeError: the recipes differ, or there is no such pair.
    """
    if proxy.recipe != measured.recipe:
        raise RecipeError(f"One table is of {proxy.recipe.name}, the other of {measured.recipe.name}; they must agree.")
    errors = {}
    for name, own in proxy.errors.items():
        shared = own.keys() & measured.errors[name].keys()
        if own.keys() - {FLOAT} and not shared - {FLOAT}:
            raise RecipeError(f"Nothing was measured at any of the bits that {name} may have.")
        estimated, found = (sum(table.errors[name][bits] for bits in shared) for table in (proxy, measured))
        # Where tokens told of no error, what was measured holds for all bits.
        errors[name] = {
            bits: error * found / estimated if estimated else found * (bits != FLOAT) for bits, error in own.items()
        }
    return Sensitivity("scaled", proxy.recipe, errors, proxy.seconds + measured.seconds)


def _relative_error(made: Tensor, exact: Tensor) -> float:
    """|e' - e|^2 / |e|^2."""
    return float((made - exact).float().square().sum() / exact.float().square().sum())


def _in_words(bits: Bits) -> str:
    """(4, 8) as "w4a8", floating point as "w-a-"."""
    weights, activations = ("-" if b is None else str(b) for b in bits)
    return f"w{weights}a{activations}"


def _empty_table(model: VideoModel, recipe: Recipe, choices: Sequence[Bits]) -> dict[str, dict[Bits, float]]:
    """Zero everywhere, in the order of sites and of choices.

    Raises:
        RecipeError: there are no choices, or bits out of range.
    """
    if not choices:
        raise RecipeError("There are no bits to choose from; pass at least one pair, such as (8, 8).")
    for bits in choices:
        at_bits_everywhere(recipe, bits)
    table: dict[str, dict[Bits, float]] = {}
    for site in model.sites:
        fixed = fixed_bits(recipe, site)
        table[site.name] = dict.fromkeys(choices if fixed is None else [fixed], 0.0)
    return table


def _to_find(model: VideoModel, recipe: Recipe, bits: Bits, first: bool) -> dict[str, Bits]:
    """Whose error the variant at `bits` is to tell, and under which bits it goes; fixed sites once."""
    wanted = {}
    for site in model.sites:
        fixed = fixed_bits(recipe, site)
        if fixed is None or first:
            wanted[site.name] = bits if fixed is None else fixed
    return {name: bits for name, bits in wanted.items() if bits != FLOAT}
