"""Int8 layers on CUDA against float64 sums of codes; run by test_cuda_int8.py, see cuda_int8_arithmetic.py."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from qvd_core.engines import cuda_layer
from qvd_core.engines.int8_layer import int8_layer
from qvd_core.formats import WeightFormat
from qvd_core.quantizers.channel_transform import ChannelTransform
from tests.closeness import assert_close
from tests.engines.int8_cases import Case, assert_within, build, formats, suited

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
NAMES = ["linear", "conv2d-stride-padding", "conv2d-same-asymmetric", "conv3d"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),  # in rows beyond the last
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
]


def output(case: Case) -> Tensor:
    case.layer.to(DEVICE)
    made: Tensor = int8_layer(cuda_layer, case.layer, case.quantizer.to(DEVICE))(case.x.to(DEVICE))
    case.layer.to("cpu")
    return made.cpu()


@pytest.mark.parametrize(("name", "granularity"), suited(NAMES, ["tensor", "frame", "token", "split"]))
def test_layers_give_the_sums_of_their_codes(name, granularity):
    for weights, bits, symmetric in formats(name)[::6]:
        case = Case(name, granularity, weights, bits, symmetric)
        expected, allowed = case.expected()
        assert_within(output(case), expected, allowed, f"{weights}, inputs of {bits} bits, symmetric: {symmetric}")


@pytest.mark.parametrize(("name", "granularity"), suited(["linear", "conv1d", "conv2d-reflect"], ["tensor", "token"]))
def test_layers_that_transform_their_input_themselves(name, granularity):
    kind, _, x = build(name)
    channels = x.shape[-1 if kind == "linear" else 1]
    transform = ChannelTransform(torch.linspace(-0.8, 1.1, channels), torch.linspace(0.4, 2.3, channels))
    case = Case(name, granularity, WeightFormat(8, symmetric=False), 8, False, transform)
    assert_within(output(case), *case.expected(), name)


@pytest.mark.parametrize("granularity", ["tensor", "frame", "token", "split"])
def test_layers_in_bf16(granularity):
    case = Case("conv2d-stride-padding", granularity, WeightFormat(8), 8, False, dtype=torch.bfloat16)
    made, (expected, allowed) = output(case), case.expected()
    assert made.dtype == torch.bfloat16
    # Triton's interpreter cuts off what does not fit bf16, which may miss by twice as much as rounding.
    assert_close(made, expected, 2 * float(allowed.max()), granularity)


def test_grouped_convolutions_are_refused():
    assert "4 groups" in cuda_layer.takes("conv2d", 4, 9, False)
    assert "could overflow" in cuda_layer.takes("conv2d", 1, 2**15 + 1, False)
    assert cuda_layer.takes("conv2d", 1, 9, True) is None
