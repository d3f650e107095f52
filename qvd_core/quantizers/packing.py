"""Integer codes of 2 to 8 bits without gaps: N codes of b bits take ceil(N b / 8) bytes.

Codes are stored offset by 2^(b-1), so from 0, lowest bits first, one after the other across byte borders.
Eight codes always fill b bytes, so both ways are eight strided passes, on whatever device the codes are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BITS = range(2, 9)


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes take."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Signed codes of any shape, each in -2^(bits-1) .. 2^(bits-1) - 1, as uint8 [ceil(N bits / 8)].

    Raises:
        ValueError: a code does not fit.
    """
    _check(bits)
    offset = 1 << (bits - 1)
    flat = codes.detach().flatten()
    if flat.numel() and not (int(flat.min()) >= -offset and int(flat.max()) < offset):
        raise ValueError(f"Codes from {int(flat.min())} to {int(flat.max())} do not fit {bits} bits.")
    values = flat.to(torch.uint8) + offset & 2 * offset - 1  # uint8 wraps, as two's complement does
    if bits == 8:
        return values
    values = F.pad(values, (0, -len(flat) % 8)).view(-1, 8)
    packed = values.new_zeros(len(values), bits)
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        packed[:, byte] |= values[:, place] << shift
        if shift + bits > 8:
            packed[:, byte + 1] |= values[:, place] >> (8 - shift)
    return packed.flatten()[: packed_size(len(flat), bits)].clone()


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """What `pack` made of codes of `shape`, int8, on the device of `packed`.

    Raises:
        ValueError: `packed` has another size than such codes take.
    """
    _check(bits)
    count = math.prod(shape)
    size = packed_size(count, bits)
    if packed.dtype != torch.uint8 or packed.numel() != size:
        raise ValueError(
            f"{packed.numel()} {packed.dtype} do not hold {count} codes of {bits} bits, which take {size} bytes."
        )
    offset = 1 << (bits - 1)
    if bits == 8:
        return (packed ^ offset).view(torch.int8).reshape(shape)
    stored = F.pad(packed.flatten(), (0, -size % bits)).view(-1, bits)
    values = stored.new_empty(len(stored), 8)
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        value = stored[:, byte] >> shift
        if shift + bits > 8:
            value |= stored[:, byte + 1] << (8 - shift)
        values[:, place] = value & 2 * offset - 1
    return values.flatten()[:count].sub_(offset).view(torch.int8).reshape(shape)


def _check(bits: int) -> None:
    if bits not in BITS:
        raise ValueError(f"bits = {bits!r} is out of range; choose {BITS[0]} to {BITS[-1]}.")
