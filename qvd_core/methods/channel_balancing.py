"""SmoothQuant's channel balancing (arXiv 2211.10438, equation 4), which ViDiT-Q uses as its static part.

    s_c = max|X_c|^a / max|W_c|^(1 - a)

Inputs are divided and weights multiplied by s, so that wide input channels hand part of their range to
the weights. max|X_c| is over all calibrated steps, max|W_c| over every layer that reads the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qvd_core.quantizers.channel_transform import ChannelTransform

FLOOR = 1e-5  # of both maxima, as in SmoothQuant's code


def balance_channels(low: Tensor, high: Tensor, weights: Sequence[Tensor], strength: float) -> ChannelTransform:
    """The balancing of one input.

    Args:
        low, high: extremes of each channel, [steps, C].
        weights: of every layer that reads it, each [out, C, ...].
        strength: the exponent a, 0 to 1.
    """
    inputs = torch.maximum(low.abs(), high.abs()).amax(0).clamp(min=FLOOR)
    by_layer = [w.detach().float().cpu().abs().transpose(0, 1).flatten(1).amax(1) for w in weights]
    outputs = torch.stack(by_layer).amax(0).clamp(min=FLOOR)
    scale = inputs**strength / outputs ** (1 - strength)
    return ChannelTransform(torch.zeros_like(scale), scale)
