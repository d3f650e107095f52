"""Logarithmic quantization: magnitudes on a grid whose spacing grows with them, the sign kept apart.

HiDi-TQ, the quantizer of QVD (arXiv 2407.11585, section 4.1.2), is a logarithmic grid modified by a
"relaxation coefficient" alpha. The paper's formula is not public; of three readings, H1 is the default:

    H1   x' = sign(x) A 2^(-q / alpha),   q = round(-alpha log2(|x| / A)),   A = max |x|

The authors' public code (PaddleSlim, example/QVD) has no alpha: it is H1 at alpha = 1 with another
rounding, here `port_grid`. H2 and H3 (see `FORMS`) are our own, to compare with.

A grid is two tables. A code is a sign times an index into ascending `magnitudes`, found by counting the
`thresholds` that |x| reaches. So every form runs the same code, and what a formula evaluated twice would
only do up to rounding holds exactly: x' is its own x', zero stays zero, -x gives -x', and under H1 and
H2 A stays A and nothing exceeds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


def _scaled_logarithm(index: Tensor, levels: int, coefficient: Tensor) -> Tensor:
    return torch.exp2((index - levels) / coefficient)


def _offset_logarithm(index: Tensor, levels: int, coefficient: Tensor) -> Tensor:
    return coefficient * torch.expm1(index / levels * torch.log1p(1 / coefficient))


def _scaled_range(index: Tensor, levels: int, coefficient: Tensor) -> Tensor:
    return coefficient * torch.exp2(index - levels)


FORMS: dict[str, Callable[[Tensor, int, Tensor], Tensor]] = {
    "H1": _scaled_logarithm,
    "H2": _offset_logarithm,
    "H3": _scaled_range,
}
"""Where level k = 1 .. n of a grid lies, as a fraction of A; halves lie between levels.

H1: alpha multiplies the logarithm, 2^((k - n) / alpha). Levels are a factor 2^(1/alpha) apart, so the grid
    covers (n - 1) / alpha octaves with a relative error of at most 2^(1/(2 alpha)) - 1.
H2: alpha is added inside it: log2(|x| / A + alpha), shifted and scaled to take 0 to 0 and A to n, is rounded.
    Levels lie at alpha ((1 + 1/alpha)^(k/n) - 1): evenly spaced well below alpha A, a constant factor apart
    well above it. This is a mu-law compander with mu = 1 / alpha. The paper gives none of these choices.
H3: alpha scales the range, alpha 2^(k - n). Levels are a factor of two apart whatever alpha is; the largest is
    alpha A, so A itself is one of them only where alpha is a power of two.
"""


def level_count(bits: int, sign_inside: bool = True) -> int:
    """n, the magnitudes other than zero: 2^m - 1 of m magnitude bits, as one of their codes is zero.

    With the sign inside the bits m = bits - 1. Outside, it is not counted and m = bits.
    """
    return 2 ** (bits - 1 if sign_inside else bits) - 1


@dataclass(frozen=True, eq=False)
class LogGrid:
    """One or many logarithmic grids; their axes broadcast against the tensor, as those of [G, 1, 1] and [T, C].

    Tables that differ along an axis are repeated along all axes before it, so such axes should come first.

    Attributes:
        absmax: A, the largest magnitude, finite, 0 or more; in the unit of the tensor. A range of 0 represents 0.
        coefficient: alpha, positive; broadcasts with `absmax`, and lies on the same device.
        levels: n, the number of magnitudes other than zero.
        form: a key of `FORMS`.
        midpoint: switch halfway between neighbouring magnitudes, rather than between their codes, which for
            H1 means (1 + 2^(1/alpha)) / 2 times the lower one in place of 2^(1/(2 alpha)).
    """

    absmax: Tensor
    coefficient: Tensor
    levels: int
    form: str
    midpoint: bool

    @cached_property
    def magnitudes(self) -> Tensor:
        """The values codes 0 .. n stand for, ascending from 0, fp32 [..., n + 1]."""
        table = self._at(torch.arange(self.levels + 1, device=self.absmax.device))
        table[..., 0] = 0
        return table.float()

    @cached_property
    def thresholds(self) -> Tensor:
        """The smallest magnitudes that get codes 1 .. n, ascending, fp32 [..., n]."""
        index = torch.arange(1, self.levels + 1, device=self.absmax.device)
        exact = (self._at(index - 1) + self._at(index)) / 2 if self.midpoint else self._at(index - 0.5)
        # Rounded up, so that an fp32 number reaches the threshold exactly if it reaches the unrounded one.
        nearest = exact.float()
        above = torch.tensor(math.inf, device=nearest.device)
        rounded = torch.where(nearest.double() < exact, torch.nextafter(nearest, above), nearest)
        # Where fp32 cannot hold a threshold between two levels, the lower one must still keep its code.
        rounded = torch.maximum(rounded, torch.nextafter(self.magnitudes[..., :-1], above))
        return torch.where(self.absmax[..., None] > 0, rounded, above)

    def _at(self, index: Tensor) -> Tensor:
        """The magnitude at `index`, fp64, so that how a device rounds exponentials vanishes in fp32."""
        coefficient = self.coefficient[..., None].double()
        return self.absmax[..., None].double() * FORMS[self.form](index.double(), self.levels, coefficient)


def log_grid(
    absmax: Tensor,
    coefficient: Tensor,
    bits: int,
    form: str = "H1",
    sign_inside: bool = True,
    midpoint: bool = False,
) -> LogGrid:
    """The grid of HiDi-TQ; the paper does not say whether its bits include the sign, here they do by default.

    Args:
        absmax, coefficient, form, midpoint: see `LogGrid`.
        bits: 2 to 16; see `level_count` for what `sign_inside` does to them.
    """
    return LogGrid(absmax, coefficient, level_count(bits, sign_inside), form, midpoint)


def port_grid(absmax: Tensor, bits: int) -> LogGrid:
    """The grid of the authors' public code: A 2^-q for q = 0 .. 2^bits - 1, switching at 1.5 times the lower.

    Zero is none of those 2^bits codes but a mask beside them, and the sign comes on top. So this is not a
    code of `bits` bits: 2^(bits+1) + 1 different values would take bits + 2. Few are ever met: at 8 bits
    some hundred of the levels lie below the reach of fp32, and are 0.
    """
    return LogGrid(absmax, torch.ones_like(absmax), 2**bits, "H1", midpoint=True)


class LevelTables(Protocol):
    """What coding needs of a `LogGrid`: its two tables, and `levels`."""

    @property
    def magnitudes(self) -> Tensor: ...

    @property
    def thresholds(self) -> Tensor: ...

    @property
    def levels(self) -> int: ...


def quantize(x: Tensor, grid: LevelTables) -> Tensor:
    """Codes of `x`, in the shape that `x` and the grid broadcast to: sign(x) (n - q), and 0 for zero.

    So n stands for A, 1 for the smallest magnitude, and -n for -A. int8 where n fits it, as it does at 8 bits
    with the sign inside; else int16 or int32. NaN has no code and must not come here; infinities clip.
    """
    shape = torch.broadcast_shapes(x.shape, grid.magnitudes.shape[:-1])
    thresholds = _in_rows(grid.thresholds, shape).contiguous()
    magnitudes = x.float().abs().expand(shape).reshape(len(thresholds), -1).contiguous()
    codes = torch.searchsorted(thresholds, magnitudes, right=True, out_int32=True).reshape(shape)
    codes = torch.where(x < 0, -codes, codes)
    return codes.to(torch.int8 if grid.levels < 2**7 else torch.int16 if grid.levels < 2**15 else torch.int32)


def dequantize(codes: Tensor, grid: LevelTables) -> Tensor:
    """The real numbers `codes` stand for, in fp32: one look-up each."""
    shape = torch.broadcast_shapes(codes.shape, grid.magnitudes.shape[:-1])
    table = _in_rows(grid.magnitudes, shape)
    index = codes.long().abs().expand(shape).reshape(len(table), -1)
    magnitudes = table.gather(1, index).reshape(shape)
    return torch.where(codes < 0, -magnitudes, magnitudes)


def fake_quantize(x: Tensor, grid: LevelTables) -> Tensor:
    """`dequantize(quantize(x))` in the dtype of `x`."""
    return dequantize(quantize(x, grid), grid).to(x.dtype)


def _in_rows(table: Tensor, shape: torch.Size) -> Tensor:
    """The tables [..., N] a tensor of `shape` needs, [R, N], each for one of R equal stretches of the tensor."""
    batch = table.shape[:-1]
    differing = max([0, *(axis + 1 for axis, size in enumerate(batch) if size > 1)])
    rows = shape[: len(shape) - len(batch) + differing] if differing else ()
    return table.reshape(*batch[:differing], -1).expand(*rows, -1).reshape(-1, table.shape[-1])
