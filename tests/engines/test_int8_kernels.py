"""The kernels compile for real devices, which needs none, to the instructions they were written for."""

from __future__ import annotations

import os
import re
from types import ModuleType
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed; there are no kernels to compile")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted in this process, not compiled"
)
devices = pytest.mark.parametrize("capability", [80, 90], ids=["ampere", "hopper"])
CODES = {"CODE_MIN": -128, "CODE_MAX": 127}
DYNAMIC = {**CODES, "SYMMETRIC": False}
POINTERS = {
    **dict.fromkeys(["x", "y", "bias"], "*bf16"),
    **dict.fromkeys(["codes", "weights", "padded"], "*i8"),
    **dict.fromkeys(["scale", "weight_scale", "lows", "highs"], "*fp32"),
    **dict.fromkeys(["zero_point", "weight_zero_point", "weight_sums"], "*i32"),
}


@pytest.fixture
def kernels(tmp_path, monkeypatch) -> ModuleType:
    from qvd_core.engines import int8_kernels

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    return int8_kernels


def compiled(kernel: Any, constants: dict[str, Any], capability: int, **options: int) -> str:
    """PTX of a kernel whose pointers and sizes are divisible by 16."""
    signature = {n: "constexpr" if n in constants else POINTERS.get(n, "i32") for n in kernel.arg_names}
    aligned = ["size", "channels", "outputs", *POINTERS]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(signature) if n in aligned and n not in constants},
    )
    ptx: str = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]
    return ptx


@devices
@pytest.mark.parametrize("taps", [1, 9], ids=["linear", "3x3"])
@pytest.mark.parametrize("affine_weights", [False, True], ids=["w-symmetric", "w-affine"])
def test_products_are_those_of_integer_tensor_cores(kernels, capability, taps, affine_weights):
    multiply = kernels.multiply.fn.fn
    side = 1 if taps == 1 else 3
    # Both variants of the loop are compiled, if not in all combinations.
    constants = {"TAPS": taps, "TAPS_H": side, "TAPS_W": side, "WHOLE_BLOCKS": not affine_weights}
    if not affine_weights:
        constants["weight_zero_point"] = None
    for tile in kernels.multiply.configs[::3]:
        options = {"num_stages": tile.num_stages, "num_warps": tile.num_warps}
        ptx = compiled(multiply, {**constants, **tile.kwargs}, capability, **options)
        products = set(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync)\S*", ptx))
        assert products
        assert all("s32.s8.s8" in product for product in products)
        by_warp_groups = capability == 90 and tile.kwargs["BLOCK_M"] >= 64
        assert any("wgmma" in product for product in products) == by_warp_groups
        assert "cp.async.cg" in ptx, "codes are not fetched ahead, 16 at a time"
        assert ".local" not in ptx, "registers are spilled"


@devices
@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("quantize_samples", {**CODES, "BLOCK": 4096}),
        ("quantize_rows", {**DYNAMIC, "ROWS": 8, "BLOCK": 512}),
        ("sample_ranges", {"BLOCK": 4096}),
        ("sample_grids", {**DYNAMIC, "PARTS": 64}),
        ("pad_samples", {"PIXELS": 32, "CHANNELS": 128, "by_channel": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_codes_are_computed_as_torch_computes_them(kernels, capability, name, constants):
    ptx = compiled(getattr(kernels, name), constants, capability, num_warps=8)
    assert "fma." not in ptx, "a product and a sum were fused, and are rounded once"
    assert not re.search(r"div\.(full|approx)|rcp\.", ptx), "a division is not to the nearest"
    assert name == "sample_grids" or ".v4.b32" in ptx, "memory is not read 16 bytes at a time"
