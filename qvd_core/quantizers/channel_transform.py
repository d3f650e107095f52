"""An equivalent transformation of channels: shift and scale a layer's input, and undo it in its weights.

    X' = (X - shift) / scale          W' = W * scale          bias' = bias + W shift
    X' W'^T + bias' = X W^T + bias

exactly, in real numbers. Outlier Suppression+ (arXiv 2304.09145, section 3.1) states it for linear layers;
for a convolution, W sums over the kernel too, and its zero padding has to be transformed like the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class ChannelTransform:
    """What is done to each channel of an input.

    Attributes:
        shift: fp32 [C], in the unit of the input.
        scale: fp32 [C], positive, dimensionless.
    """

    shift: Tensor
    scale: Tensor

    def apply(self, x: Tensor, axis: int = -1) -> Tensor:
        """`x` with its channels, along `axis`, shifted and scaled; in the dtype of `x`."""
        shape = [1] * x.dim()
        shape[axis] = -1
        shift, scale = self.shift.to(x).view(shape), self.scale.to(x).view(shape)
        return (x - shift) / scale

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weights [out, C, ...] and bias that expect the transformed input.

        A layer without a bias gets one if anything is shifted.
        """
        shape = (1, -1, *[1] * (weight.dim() - 2))
        wide = weight.float()
        folded = (wide * self.scale.view(shape).to(wide.device)).to(weight.dtype)
        if not self.shift.any():
            return folded, bias
        moved = (wide * self.shift.view(shape).to(wide.device)).flatten(1).sum(1)
        return folded, (moved if bias is None else bias.float() + moved).to(weight.dtype)
