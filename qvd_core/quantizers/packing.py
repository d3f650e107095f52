"""Integer codes of 2 to 8 bits without gaps: N codes of b bits take ceil(N b / 8) bytes.

Codes are stored offset by 2^(b-1), so from 0, lowest bits first, one after the other across byte borders.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BITS = range(2, 9)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Signed codes of any shape, each in -2^(bits-1) .. 2^(bits-1) - 1, as uint8 [ceil(N bits / 8)].

    Raises:
        ValueError: a code does not fit.
    """
    _check(bits)
    offset = 1 << (bits - 1)
    flat = codes.detach().cpu().flatten().to(torch.int16) + offset
    if flat.numel() and not (int(flat.min()) >= 0 and int(flat.max()) < 2 * offset):
        raise ValueError(f"Codes from {int(flat.min()) - offset} to {int(flat.max()) - offset} do not fit {bits} bits.")
    values = flat.to(torch.uint8).numpy()
    if bits == 8:
        return torch.from_numpy(values)
    if 8 % bits == 0:
        per_byte = 8 // bits
        padded = np.zeros(-(-len(values) // per_byte) * per_byte, np.uint8)
        padded[: len(values)] = values
        shifts = (bits * np.arange(per_byte)).astype(np.uint8)
        return torch.from_numpy(np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shifts, axis=1, dtype=np.uint8))
    each = np.unpackbits(values[:, None], axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(each, bitorder="little"))


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """What `pack` made of codes of `shape`, int8.

    Raises:
        ValueError: `packed` has another size than such codes take.
    """
    _check(bits)
    count = int(np.prod(shape, dtype=np.int64))
    if packed.dtype != torch.uint8 or packed.numel() != -(-count * bits // 8):
        raise ValueError(
            f"{packed.numel()} {packed.dtype} do not hold {count} codes of {bits} bits, which take"
            f" {-(-count * bits // 8)} bytes."
        )
    stored = packed.detach().cpu().flatten().numpy()
    if bits == 8:
        values = stored
    elif 8 % bits == 0:
        shifts = (bits * np.arange(8 // bits)).astype(np.uint8)
        values = ((stored[:, None] >> shifts) & ((1 << bits) - 1)).ravel()[:count]
    else:
        each = np.unpackbits(stored, count=count * bits, bitorder="little").reshape(-1, bits)
        values = np.packbits(each, axis=1, bitorder="little").ravel()
    offset = 1 << (bits - 1)
    return (torch.from_numpy(values.copy()).to(torch.int16) - offset).to(torch.int8).reshape(shape)


def _check(bits: int) -> None:
    if bits not in BITS:
        raise ValueError(f"bits = {bits!r} is out of range; choose {BITS[0]} to {BITS[-1]}.")
