"""What the int8 engine refuses and promises without computing; the arithmetic, in processes of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from qvd_core.engines import cuda_int8
from qvd_core.errors import GenerationError

PROJECT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed; there are no kernels to run"
)

files = pytest.mark.parametrize("file", ["cuda_int8_arithmetic.py", "cuda_layer_arithmetic.py"])


def run_arithmetic(file: str, interpret: bool) -> None:
    """Triton decides when it is imported whether to interpret, so each way has its own process."""
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/engines/{file}"]
    child = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stdout[-6000:] + child.stderr[-2000:]
    assert "skipped" not in child.stdout


@files
@needs_triton
def test_arithmetic_under_the_interpreter(file):
    run_arithmetic(file, interpret=True)


@pytest.mark.gpu
@files
@needs_triton
@pytest.mark.skipif(cuda_int8.unavailable() is not None, reason=f"{cuda_int8.unavailable()}")
def test_arithmetic_on_the_gpu(file):
    run_arithmetic(file, interpret=False)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ({"kind": "linear", "products": 2**15, "weight_bits": 2, "activation_bits": 3}, None),
        ({"kind": "conv3d", "products": 27 * 512}, None),
        ({"kind": "conv2d", "groups": 4}, "4 groups"),
        ({"kind": "attention"}, "'attention' is none of linear, conv1d, conv2d, conv3d"),
        ({"kind": "linear", "products": 2**15 + 1}, "32769 products could overflow"),
        ({"kind": "linear", "weight_bits": None}, "weights in floating point"),
        ({"kind": "linear", "activation_bits": None}, "inputs in floating point"),
        ({"kind": "linear", "activation_bits": 16}, "inputs of 16 bits"),
    ],
)
def test_what_it_takes_and_why_not(layer, reason):
    answer = cuda_int8.takes(**layer)
    assert answer is None if reason is None else reason in answer


def test_the_longest_sum_is_the_largest_power_of_two_that_fits():
    assert 255 * 255 * cuda_int8.LONGEST_SUM < 2**31 <= 255 * 255 * 2 * cuda_int8.LONGEST_SUM


def codes(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int8)


def packed(*shape: int) -> cuda_int8.Weights:
    return cuda_int8.pack(codes(*shape), torch.ones(shape[0]))


def test_packing():
    weights = torch.tensor([[[1, 2], [3, 4]], [[5, 6], [-7, 8]]], dtype=torch.int8)  # [out, in, kernel]
    zero_point = torch.tensor([-120, 3], dtype=torch.int32)
    plain = cuda_int8.pack(weights, torch.ones(2, 1, 1), bias=torch.nn.Parameter(torch.ones(2)))
    assert plain.codes.tolist() == [[[1, 3], [2, 4]], [[5, -7], [6, 8]]]
    assert plain.sums.tolist() == [10, 12]
    assert plain.zero_point is None
    assert not plain.bias.requires_grad
    centred = cuda_int8.pack(weights, torch.ones(2), zero_point)
    assert centred.zero_point is None
    assert centred.codes.tolist() == [[[121, 123], [122, 124]], [[2, -10], [3, 5]]]
    kept = cuda_int8.pack(weights, torch.ones(2), zero_point - 8)
    assert kept.zero_point.tolist() == [-128, -5]
    assert kept.codes.tolist() == plain.codes.tolist()


F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
ONE = torch.ones(1)
REFUSED = {
    "float weights": (lambda: cuda_int8.pack(torch.ones(2, 3), torch.ones(2)), "not float32 [2, 3]"),
    "too few scales": (lambda: cuda_int8.pack(codes(2, 3), ONE), "one scale per output channel, not 1"),
    "long sum": (lambda: cuda_int8.pack(codes(1, 4000, 3, 3), ONE), "sums of 36000 products"),
    "bias": (lambda: cuda_int8.pack(codes(2, 3), torch.ones(2), None, ONE), "bias of 2 output channels"),
    "zero point": (lambda: cuda_int8.pack(codes(2, 3), torch.ones(2), torch.zeros(2)), "Zero points are int32 [2]"),
    "scale in bf16": (lambda: cuda_int8.quantize_static(ONE, ONE.to(BF16), None, -8, 7), "not bfloat16 [1]"),
    "input in fp64": (lambda: cuda_int8.quantize_static(ONE.to(F64), ONE, None, -8, 7), "not float64 [1]"),
    "code range": (lambda: cuda_int8.quantize_static(ONE, ONE, None, -128, 128), "-128 .. 128"),
    "grids": (lambda: cuda_int8.quantize_static(torch.ones(3, 2), torch.ones(2), None, -8, 7), "2 grids do not"),
    "bits": (lambda: cuda_int8.quantize_dynamic(ONE, 9, True, "linear"), "'linear' to 9 bits"),
    "kind": (lambda: cuda_int8.quantize_dynamic(ONE, 8, True, "conv4d"), "'conv4d'"),
    "axes": (lambda: cuda_int8.quantize_dynamic(torch.ones(3, 2), 8, True, "conv2d"), "float32 [3, 2]"),
    "row length": (lambda: cuda_int8.linear(codes(2, 4), ONE, None, packed(5, 3), F32), "[out, *kernel, in] [5, 3]"),
    "row grids": (lambda: cuda_int8.linear(codes(4, 3), torch.ones(3), None, packed(5, 3), F32), "3 grids fit neither"),
    "output": (lambda: cuda_int8.linear(codes(4, 3), ONE, None, packed(5, 3), F64), "not torch.float64"),
    "channels": (lambda: cuda_int8.convolve(codes(1, 2, 5), ONE, None, packed(5, 3, 3), F32), "[5, 3, 3]"),
    "sample grids": (
        lambda: cuda_int8.convolve(codes(3, 3, 5), torch.ones(2), None, packed(5, 3, 3), F32),
        "2 grids do not divide 3 samples",
    ),
    "stride": (lambda: cuda_int8.convolve(codes(1, 3, 5), ONE, None, packed(5, 3, 3), F32, (1, 1)), "each of 1 axes"),
    "padding": (
        lambda: cuda_int8.convolve(codes(1, 3, 5), ONE, None, packed(5, 3, 3), F32, padding="reflect"),
        "'reflect' is neither 'same' nor 'valid'",
    ),
    "kernel": (lambda: cuda_int8.convolve(codes(1, 3, 5), ONE, None, packed(5, 3, 3), F32, dilation=3), "7 wide"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError) as refused:
        call()
    assert message in str(refused.value)


def test_shapes_are_known_without_computing():
    convolution, weights = packed(6, 4, 3, 3), packed(8, 6)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 4, 9, 10, dtype=BF16).contiguous(memory_format=torch.channels_last)
        values, scale, zero_point = cuda_int8.quantize_dynamic(x, 8, False, "conv2d")
        assert (values.shape, values.stride(), values.dtype) == (x.shape, x.stride(), torch.int8)
        assert scale.shape == zero_point.shape == (2, 1, 1, 1)
        assert (scale.dtype, zero_point.dtype) == (F32, torch.int32)
        y = cuda_int8.convolve(values, scale, zero_point, convolution, BF16, stride=2, padding=1)
        assert (y.shape, y.dtype) == ((2, 6, 5, 5), BF16)
        assert y.is_contiguous(memory_format=torch.channels_last)
        values = cuda_int8.quantize_static(y.movedim(1, -1), ONE, None, -127, 127)
        y = cuda_int8.linear(values, ONE, None, weights, F32)
        assert (y.shape, y.dtype) == ((2, 5, 5, 8), F32)


def test_without_triton_it_says_so_when_it_is_used(monkeypatch):
    monkeypatch.delitem(sys.modules, "qvd_core.engines.int8_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(GenerationError, match="needs Triton"):
        cuda_int8.quantize_static(torch.ones(3), ONE, None, -8, 7)


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this process interprets kernels")
def test_tensors_elsewhere_are_refused():
    with pytest.raises(GenerationError, match="on cpu"):
        cuda_int8.linear(codes(2, 3), ONE, None, packed(5, 3), F32)
    assert cuda_int8.unavailable() is None or not torch.cuda.is_available()
