"""SCRI, Scattered Channel Range Integration (QVD, arXiv 2407.11585, section 4.2), and Outlier Suppression+.

Activations differ between channels in centre and width, so each channel meets few levels of a grid they
all share. Channels are moved to a common centre and the widest shrunk, by an equivalent transformation:

    z_c = (max_c + min_c) / 2              h_c = (max_c - min_c) / 2
    s_c = max(1, h_c / t)                  X' = (X - z) / s

No equation of the paper's body is public. These are the ones of its public port, which takes them from
Outlier Suppression+ (arXiv 2304.09145) and ships with the scale switched off. The threshold t is searched
from max h_c downwards to mean h_c in max(100, floor(max h_c / 0.5)) equal steps, for the least error of
what the channels are for: of softmax(q k^T) v, without biases, at a temporal self-attention, else of the
layer's output. Inputs are quantized on [-t, t] and weights as the recipe says, at the recipe's bits
[choice: the port uses 8 always]. Of equal errors the larger t wins.

Without the shift, h_c is max|X_c| and z_c zero [choice]. A convolution's error is summed over the taps of
its kernel as if they saw independent pixels, since single pixels are what calibration samples [choice].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qvd_core.formats import ActivationFormat, WeightFormat
from qvd_core.quantizers.channel_transform import ChannelTransform
from qvd_core.quantizers.uniform import fake_quantize, make_grid

SEARCHED_SEQUENCES = 8  # of temporal attention; evenly spaced over the steps
SEARCHED_TOKENS = 32  # of other layers
WEIGHTS_AT_ONCE = 2**22  # bounds the memory of the search


@dataclass(frozen=True, eq=False)
class ThresholdSearch:
    """How the threshold of one input was found.

    Attributes:
        thresholds: fp32 [G], descending, in the unit of the input.
        errors: fp32 [G], squared output error per token, summed over features.
        best: index of the least error.
    """

    thresholds: Tensor
    errors: Tensor
    best: int

    @property
    def threshold(self) -> float:
        return float(self.thresholds[self.best])


def centre_and_half_width(low: Tensor, high: Tensor, shift: bool) -> tuple[Tensor, Tensor]:
    """z and h [C] of channels with extremes [C]; z is zero where nothing is shifted."""
    if shift:
        return (high + low) / 2, (high - low) / 2
    return torch.zeros_like(low), torch.maximum(low.abs(), high.abs())


def transform_at(centre: Tensor, half_width: Tensor, threshold: float | Tensor) -> ChannelTransform:
    """The transformation with threshold t; infinity leaves widths as they are.

    Where t is 0, as for an input that never varies, nothing is scaled.
    """
    scale = (half_width / threshold).nan_to_num(1, posinf=1).clamp(min=1)
    return ChannelTransform(centre, scale)


def coverage(low: Tensor, high: Tensor, symmetric: bool) -> Tensor:
    """Share [C] of a per-tensor grid that each channel with extremes [C] spans, 0 to 1.

        (max_c - min_c) / (max - min), or / (2 max|X|) on a symmetric grid

    After the shift, or shift and scale, apply it to the transformed extremes: both grids then give
    h_c / max h_c and min(h_c, t) / t. All-zero inputs are covered fully.
    """
    width = 2 * torch.maximum(low.abs(), high.abs()).max() if symmetric else high.max() - low.min()
    return torch.where(width > 0, (high - low) / width, torch.ones_like(low))


def search_threshold(
    tokens: Tensor,
    centre: Tensor,
    half_width: Tensor,
    weights: Sequence[Tensor],
    weight_format: WeightFormat | None,
    input_format: ActivationFormat,
    attention: tuple[int, float] | None = None,
) -> ThresholdSearch:
    """Search the threshold of one input.

    Args:
        tokens: fp32 [N, length, C], samples of the input as it is.
        centre, half_width: of `centre_and_half_width`.
        weights: of the layers that read it, [out, C, ...] each; for an attention those of q, k and v.
        weight_format: None leaves the weights as they are.
        input_format: bits and symmetry of the input's grid.
        attention: (heads, scale of q k^T), where the input feeds q, k and v of one self-attention.
    """
    shifted = tokens.flatten(0, -2) - centre
    largest, smallest = float(half_width.max()), float(half_width.mean())
    thresholds = torch.linspace(largest, smallest, max(100, int(largest / 0.5)) + 1)
    if largest == 0:
        return ThresholdSearch(thresholds, torch.zeros_like(thresholds), 0)
    wide = [w.detach().float().cpu() for w in weights]
    matrices = [w.flatten(2).transpose(1, 2).flatten(0, 1) if w.dim() > 2 else w for w in wide]  # taps as outputs
    taps = [w[0, 0].numel() for w in wide]
    length = tokens.shape[1]

    def outputs(x: Tensor, *layers: Tensor) -> Tensor:
        """What the layers make of x [G, N * length, C], given [G, out, C] each."""
        results = [x @ layer.transpose(1, 2) for layer in layers]
        if attention is None:
            return torch.cat(results, -1)
        heads, scale = attention
        q, k, v = (r.unflatten(1, (-1, length)).unflatten(-1, (heads, -1)).transpose(2, 3) for r in results)
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(2, 3).flatten(-2).flatten(1, 2)

    # A common offset of q, k and v, W z, would not change with t but does enter the attention: keep it in
    # by measuring the error of the whole layer, offsets included.
    offsets = [matrix @ centre for matrix in matrices]

    def with_offsets(layers: list[Tensor]) -> Callable[[Tensor], Tensor]:
        padded = [torch.cat([m, o.expand(len(m), -1)[..., None]], -1) for m, o in zip(layers, offsets, strict=True)]
        return lambda x: outputs(F.pad(x, (0, 1), value=1.0), *padded)

    exact = with_offsets([m[None] for m in matrices])(shifted[None])
    errors = []
    for part in thresholds.split(max(1, WEIGHTS_AT_ONCE // sum(m.numel() for m in matrices))):
        scale = transform_at(centre, half_width, part[:, None]).scale[:, None]  # [G, 1, C]
        t = part[:, None, None]
        x = fake_quantize(shifted / scale, make_grid(-t, t, input_format.bits, input_format.symmetric))
        layers = [_quantized_weight(m * scale, tap, weight_format) for m, tap in zip(matrices, taps, strict=True)]
        made = with_offsets(layers)(x)
        errors.append((made - exact).square().sum(-1).mean(-1))
    found = torch.cat(errors)
    return ThresholdSearch(thresholds, found, int(found.argmin()))


def _quantized_weight(weight: Tensor, taps: int, form: WeightFormat | None) -> Tensor:
    """Weights [G, out * taps, C] with one grid per output channel, as the layer will have them."""
    if form is None:
        return weight
    by_channel = weight.unflatten(1, (-1, taps))
    low, high = by_channel.amin((2, 3), keepdim=True), by_channel.amax((2, 3), keepdim=True)
    return fake_quantize(by_channel, make_grid(low, high, form.bits, form.symmetric)).flatten(1, 2)
