"""Channel transformations of a model's inputs: which inputs a recipe means, and what each of them gets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qvd_core.calibration.statistics import Statistics
from qvd_core.formats import ActivationFormat, ChannelBalancing, ShiftAndScale, WeightFormat, matches
from qvd_core.methods.channel_balancing import balance_channels
from qvd_core.methods.scri import (
    SEARCHED_SEQUENCES,
    SEARCHED_TOKENS,
    ThresholdSearch,
    centre_and_half_width,
    search_threshold,
    transform_at,
)
from qvd_core.models.loader import VideoModel
from qvd_core.models.sites import SharedInput, find_inputs
from qvd_core.quantizers.channel_transform import ChannelTransform
from qvd_core.recipe import TIME_PATH, Recipe


def transformed_inputs(model: VideoModel, recipe: Recipe) -> list[SharedInput]:
    """The inputs whose channels `recipe` transforms: all readers of an input go along if it means one of them.

    Left out are the time path where it has a method of its own, and grouped convolutions, whose groups of
    outputs read channels of their own.
    """
    if recipe.channels is None:
        return []
    roles = {site.name: site.role for site in model.sites}
    found = []
    for shared in find_inputs(model.denoiser, model.sites):
        in_time_path = any(roles[name] in TIME_PATH for name in shared.consumers)
        meant = any(matches(p, name, roles[name]) for p in recipe.channels.sites for name in shared.consumers)
        grouped = getattr(model.denoiser.get_submodule(shared.consumers[0]), "groups", 1) != 1
        if meant and not grouped and not (in_time_path and recipe.temporal is not None):
            found.append(shared)
    return found


def balanced(
    model: VideoModel, statistics: Statistics, shared: SharedInput, method: ChannelBalancing
) -> ChannelTransform:
    """Channel balancing of one input."""
    low, high = input_extremes(model, statistics, shared.consumers[0])
    return balance_channels(low, high, _weights(model, shared), method.strength)


def shifted_and_scaled(
    model: VideoModel, statistics: Statistics, shared: SharedInput, recipe: Recipe, method: ShiftAndScale
) -> tuple[ChannelTransform, ThresholdSearch | None]:
    """Shift and scale of one input, and how its threshold was found; None if nothing was searched."""
    first = shared.consumers[0]
    rows = slice(1) if method.steps == "first" else slice(None)
    low, high = (extreme[rows] for extreme in input_extremes(model, statistics, first))
    centre, half_width = centre_and_half_width(low.amin(0), high.amax(0), method.shift)
    weights, inputs = recipe.formats(first, next(site.role for site in model.sites if site.name == first))
    if not method.scale or inputs is None:
        return transform_at(centre, half_width, float("inf")), None
    search = threshold_search(model, statistics, shared, centre, half_width, weights, inputs, rows)
    return transform_at(centre, half_width, search.threshold), search


def threshold_search(
    model: VideoModel,
    statistics: Statistics,
    shared: SharedInput,
    centre: Tensor,
    half_width: Tensor,
    weights: WeightFormat | None,
    inputs: ActivationFormat,
    rows: slice = slice(None),
) -> ThresholdSearch:
    """SCRI's search over the sampled tokens of one input.

    Args:
        centre, half_width: fp32 [C], of `centre_and_half_width`.
        weights, inputs: the formats the layers are going to have.
        rows: of the tokens to look at.
    """
    first = shared.consumers[0]
    tokens = statistics.tokens[first][rows]
    attention = None
    if len(shared.consumers) == 3 and tokens.shape[2] > 1:
        module: Any = model.denoiser.get_submodule(first.rpartition(".")[0])
        attention = (module.heads, module.scale)
    tokens = tokens.flatten(0, 1)
    most = SEARCHED_TOKENS if attention is None else SEARCHED_SEQUENCES
    tokens = tokens[torch.linspace(0, len(tokens) - 1, min(len(tokens), most)).long()]
    return search_threshold(tokens, centre, half_width, _weights(model, shared), weights, inputs, attention)


def input_extremes(model: VideoModel, statistics: Statistics, site: str) -> tuple[Tensor, Tensor]:
    """(low, high) fp32 [steps, C] of all a layer reads, the zeros of its padding included."""
    low, high = statistics.low[site], statistics.high[site]
    if pads_with_zeros(model.denoiser.get_submodule(site)):
        return low.clamp(max=0), high.clamp(min=0)
    return low, high


def pads_with_zeros(layer: Any) -> bool:
    """Whether a convolution's input is framed by zeros that calibration does not see."""
    return any(getattr(layer, "_reversed_padding_repeated_twice", ())) and layer.padding_mode == "zeros"


def _weights(model: VideoModel, shared: SharedInput) -> list[Tensor]:
    layers: list[Any] = [model.denoiser.get_submodule(name) for name in shared.consumers]
    return [layer.weight for layer in layers]
