"""Packed codes against a second way of packing, one big integer, and every way to get it wrong."""

from __future__ import annotations

import pytest
import torch

from qvd_core.quantizers.packing import BITS, pack, unpack
from tests.closeness import assert_same

every = pytest.mark.parametrize("bits", BITS)


def some_codes(shape: tuple[int, ...], bits: int) -> torch.Tensor:
    offset = 2 ** (bits - 1)
    return torch.randint(-offset, offset, shape, generator=torch.Generator().manual_seed(bits), dtype=torch.int8)


@every
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (8,), (5, 3, 3, 3), (64, 33)], ids=str)
def test_codes_come_back(bits, shape):
    codes = some_codes(shape, bits)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == -(-codes.numel() * bits // 8)
    assert_same(unpack(packed, bits, shape), codes)


@every
def test_bytes_are_those_of_one_long_number(bits):
    codes = some_codes((29,), bits)
    number = sum((int(code) + 2 ** (bits - 1)) << (bits * place) for place, code in enumerate(codes))
    assert bytes(pack(codes, bits).tolist()) == number.to_bytes(-(-29 * bits // 8), "little")


@every
def test_all_codes_of_the_width(bits):
    codes = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).to(torch.int8)
    assert_same(unpack(pack(codes, bits), bits, codes.shape), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 7])
def test_codes_that_do_not_fit(bits):
    for wrong in (2 ** (bits - 1), -(2 ** (bits - 1)) - 1):
        with pytest.raises(ValueError, match=f"do not fit {bits} bits"):
            pack(torch.tensor([0, wrong], dtype=torch.int8), bits)


@every
def test_packed_codes_of_another_size(bits):
    packed = pack(some_codes((64,), bits), bits)
    for count in (64 + 8, 64 - 8):
        with pytest.raises(ValueError, match=f"do not hold {count} codes"):
            unpack(packed, bits, (count,))
    with pytest.raises(ValueError, match="do not hold"):
        unpack(packed.float(), bits, (64,))


@pytest.mark.parametrize("bits", [0, 1, 9, 16])
def test_absurd_widths(bits):
    with pytest.raises(ValueError, match="out of range; choose 2 to 8"):
        pack(torch.zeros(1, dtype=torch.int8), bits)
    with pytest.raises(ValueError, match="out of range; choose 2 to 8"):
        unpack(torch.zeros(1, dtype=torch.uint8), bits, (1,))
