"""The error every quantized layer makes on the tokens that calibration kept: no denoiser runs.

    |y' - y|^2 / |y|^2,   y = W x + b,   y' = W' x' + b'

summed over the sampled tokens x of all steps. x' is the token, transformed and on the grid the variant has
for its frame and step (uniform, or logarithmic for HTDQ); W' are the variant's weights. A convolution's y is
taken for each tap of its kernel by itself, without b, as if taps saw independent pixels, since single pixels
are what calibration samples; `methods.scri` does the same. Where a convolution's grid is found as the
input arrives, a sample stands for itself with the extremes of its calibrated step, since it is not known
what else was in its frame: wider than most, so the error is rather over- than underestimated.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from qvd_core.calibration.statistics import Statistics
from qvd_core.errors import CalibrationError
from qvd_core.layers.inputs import (
    DynamicPerToken,
    DynamicSplit,
    Logarithmic,
    OncePerInput,
    StaticGrids,
    StaticPerFrame,
    StaticPerStep,
)
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.quantizers.uniform import Grid, fake_quantize, make_grid
from qvd_core.variant import Variant


@torch.no_grad()
def token_errors(variant: Variant, statistics: Statistics, sites: Iterable[str] | None = None) -> dict[str, float]:
    """Relative squared error of each layer's output on the sampled tokens.

    Args:
        variant: its layers are compared with its model's.
        statistics: what the variant was made with, or would have been.
        sites: names of those wanted; None for all.

    Returns:
        By site, 0 or more; 0 for layers left as they are or tabulated, and where y' and y are 0.

    Raises:
        CalibrationError: the statistics know nothing of a site.
    """
    names = [site.name for site in variant.model.sites] if sites is None else sites
    return {name: _token_error(variant, statistics, name) for name in names}


def _token_error(variant: Variant, statistics: Statistics, name: str) -> float:
    layer = variant.denoiser.get_submodule(name)
    if not isinstance(layer, QuantizedLayer):
        return 0.0
    if name not in statistics.tokens:
        raise CalibrationError(f"The statistics say nothing about {name}, which calibration never ran.")
    original: Any = variant.model.denoiser.get_submodule(name)
    exact_weight, made_weight = _by_tap(original.weight, original), _by_tap(layer.weight, original)
    tokens = _Tokens(variant, statistics, name, layer.weight.device)
    exact = _outputs(tokens.exact, exact_weight)
    made = _outputs(tokens.on_grid(layer.quantize_input), made_weight)
    if name in variant.transforms:  # W z, which the bias has taken in
        made += _outputs(variant.transforms[name].shift.to(layer.weight.device)[None], exact_weight)
    error = (made - exact).square().sum()
    if layer.kind == "linear" and original.bias is not None:
        exact = exact + original.bias.float().view(1, 1, -1, 1)
    return float((error / exact.square().sum()).nan_to_num(0))


def _by_tap(weight: Tensor, original: Any) -> Tensor:
    """[out, C / groups, *kernel] as fp32 [groups, out / groups, C / groups, taps]."""
    groups = getattr(original, "groups", 1)
    return weight.detach().float().reshape(groups, len(weight) // groups, weight.shape[1], -1)


def _outputs(x: Tensor, weight: Tensor) -> Tensor:
    """What each tap makes of tokens [N, C]: [N, groups, out / groups, taps]."""
    return torch.einsum("ngc,goct->ngot", x.unflatten(1, (len(weight), -1)), weight)


class _Tokens:
    """Sampled tokens of one site as they were, and on the grids of a variant.

    Attributes:
        exact, transformed: fp32 [N, C], before and after the channels are transformed.
        step, frame: [N], of each; the frame is 0 where the site does not see frames.
    """

    def __init__(self, variant: Variant, statistics: Statistics, name: str, device: torch.device):
        tokens = statistics.tokens[name]
        low, high = statistics.low[name], statistics.high[name]
        frames, stride = statistics.token_frames.get(name), statistics.token_stride
        if not tokens.any():  # all of padding, as of a short prompt: the extremes stand for the rest
            tokens, frames, stride = torch.stack([low, high], 1)[:, :, None], None, 1
        rows, _, length, _ = tokens.shape
        self.exact = self.transformed = tokens.flatten(0, 2).to(device)
        self.low, self.high = low.to(device), high.to(device)
        if name in variant.transforms:
            transform = variant.transforms[name]
            self.low, self.high, self.transformed = (
                transform.apply(t) for t in (self.low, self.high, self.transformed)
            )
        steps = torch.arange(rows) * stride
        self.step = steps.repeat_interleave(len(self.exact) // rows).to(device)
        self.frame = (
            torch.zeros_like(self.step)
            if frames is None
            else frames.long().flatten().repeat_interleave(length).to(device)
        )

    def on_grid(self, quantizer: nn.Module | None) -> Tensor:
        """The transformed tokens as `quantizer` gives them to its layer, [N, C]."""
        if isinstance(quantizer, OncePerInput):
            quantizer = quantizer.quantizer
        if quantizer is None:
            return self.transformed
        if isinstance(quantizer, Logarithmic):
            x: Tensor = quantizer(self.transformed)
            return x
        if isinstance(quantizer, StaticGrids):
            grids = quantizer.grids()
            scale, zero_point = grids.scale, grids.zero_point
            if isinstance(quantizer, (StaticPerFrame, StaticPerStep)):
                own = self.frame if isinstance(quantizer, StaticPerFrame) else self.step
                scale, zero_point = scale[own, None], zero_point[own, None]
            return fake_quantize(self.transformed, Grid(scale, zero_point, grids.code_min, grids.code_max))
        if isinstance(quantizer, DynamicSplit):
            parts = slice(quantizer.split), slice(quantizer.split, None)
            return torch.cat([self._as_it_arrives(quantizer.quantizer, part) for part in parts], 1)
        assert isinstance(quantizer, DynamicPerToken)
        return self._as_it_arrives(quantizer, slice(None))

    def _as_it_arrives(self, quantizer: DynamicPerToken, channels: slice) -> Tensor:
        x = self.transformed[:, channels]
        if quantizer.axes == (-1,):
            made: Tensor = quantizer(x)
            return made
        low, high = self.low[:, channels].amin(1), self.high[:, channels].amax(1)
        form = quantizer.form
        return fake_quantize(x, make_grid(low[self.step, None], high[self.step, None], form.bits, form.symmetric))
