"""Norms that make a transformation for what reads them, against the formula written out in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qvd_core.layers.folded_norm import PositionedNorm, fold_into_norm, transformed_norm
from qvd_core.quantizers.channel_transform import ChannelTransform
from tests.closeness import assert_close, assert_same

CHANNELS = 12


def randomised(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    nn.init.normal_(norm.weight, 1)
    nn.init.normal_(norm.bias)
    return norm.requires_grad_(False)


def some_transform(seed: int = 0) -> ChannelTransform:
    generator = torch.Generator().manual_seed(seed)
    return ChannelTransform(
        3 * torch.randn(CHANNELS, generator=generator), torch.exp(torch.randn(CHANNELS, generator=generator))
    )


def normed(x: Tensor, groups: list[slice], axes: tuple[int, ...], eps: float) -> Tensor:
    """x with mean 0 and variance 1 over `axes` in each of `groups` of channels, the last axis; fp64."""
    result = torch.empty_like(x, dtype=torch.float64)
    for group in groups:
        part = x[..., group].double()
        mean = part.mean(axes, keepdim=True)
        variance = (part - mean).square().mean(axes, keepdim=True)
        result[..., group] = (part - mean) / (variance + eps).sqrt()
    return result


def test_layer_norm():
    norm, transform = randomised(nn.LayerNorm(CHANNELS, eps=1e-3)), some_transform()
    x = 2 * torch.randn(3, 5, CHANNELS, generator=torch.Generator().manual_seed(2)) + 1
    y = normed(x, [slice(None)], (-1,), 1e-3) * norm.weight + norm.bias
    assert_close(transformed_norm(norm, transform)(x), (y - transform.shift) / transform.scale, 1e-5, "LayerNorm")


@pytest.mark.parametrize("shape", [(2, 5), (2, 4, 3), (2, 3, 4, 3)], ids=["1-d", "2-d", "3-d"])
def test_group_norm(shape):
    norm, transform = randomised(nn.GroupNorm(3, CHANNELS, eps=1e-3)), some_transform()
    batch, *places = shape
    x = 2 * torch.randn(batch, *places, CHANNELS, generator=torch.Generator().manual_seed(2)) + 1
    groups = [slice(0, 4), slice(4, 8), slice(8, 12)]
    y = normed(x, groups, tuple(range(1, x.dim())), 1e-3) * norm.weight + norm.bias
    expected = ((y - transform.shift) / transform.scale).movedim(-1, 1)
    assert_close(transformed_norm(norm, transform)(x.movedim(-1, 1)), expected, 1e-5, "GroupNorm")


class Table(nn.Module):
    """Positions as diffusers keeps them."""

    def __init__(self, positions: Tensor):
        super().__init__()
        self.register_buffer("pe", positions)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pe[:, : x.shape[1]]


class Block(nn.Module):
    """The norms of a motion module's block, the first two followed by the positions."""

    def __init__(self, positions: Tensor | None = None):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (randomised(nn.LayerNorm(CHANNELS)) for _ in range(3))
        self.pos_embed = None if positions is None else Table(positions)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        placed = [norm(x) if self.pos_embed is None else self.pos_embed(norm(x)) for norm in (self.norm1, self.norm2)]
        return placed[0], placed[1], self.norm3(x)


def network(positions: Tensor | None) -> nn.Module:
    return nn.ModuleDict({"blocks": nn.ModuleList([Block(positions), Block(positions)])})


@pytest.mark.parametrize("length", [1, 4, 7])
@pytest.mark.parametrize("positioned", [True, False], ids=["positions", "none"])
@pytest.mark.parametrize("names", [("norm1",), ("norm2",), ("norm3",), ("norm3", "norm1"), ("norm1", "norm2", "norm3")])
def test_what_a_block_gives_is_transformed_where_asked_and_else_as_it_was(names, positioned, length):
    """(norm(x) + P - shift) / scale, with the same positions for all; in whatever order norms are folded."""
    generator = torch.Generator().manual_seed(3)
    positions = torch.randn(1, 7, CHANNELS, generator=generator) if positioned else None
    x = torch.randn(6, length, CHANNELS, generator=generator)
    denoiser = network(positions)
    before = [block(x) for block in denoiser["blocks"]]
    transforms = {name: some_transform(seed) for seed, name in enumerate(names)}
    for name, transform in transforms.items():
        assert fold_into_norm(denoiser, f"blocks.1.{name}", transform)
    after = [block(x) for block in denoiser["blocks"]]
    for number, name in enumerate(("norm1", "norm2", "norm3")):
        expected = before[1][number]
        if name in transforms:
            expected = transforms[name].apply(expected.double())
        assert_close(after[1][number], expected, 2e-5, name)
        assert_same(after[0][number], before[0][number], "the other block")


def test_positions_are_added_to_the_norm():
    norm, positions = randomised(nn.LayerNorm(CHANNELS)), torch.randn(1, 7, CHANNELS)
    x = torch.randn(6, 4, CHANNELS)
    assert_same(PositionedNorm(norm, positions)(x), norm(x) + positions[:, :4])


def test_the_norm_itself_is_left_alone():
    denoiser = network(torch.randn(1, 7, CHANNELS))
    norm, table = denoiser["blocks"][0].norm1, denoiser["blocks"][0].pos_embed
    before = {name: t.clone() for name, t in (*norm.state_dict().items(), *table.state_dict().items())}
    fold_into_norm(denoiser, "blocks.0.norm1", some_transform())
    for name, tensor in (*norm.state_dict().items(), *table.state_dict().items()):
        assert_same(tensor, before[name], name)


def test_half_precision_norms_stay_half_precision():
    folded = transformed_norm(randomised(nn.LayerNorm(CHANNELS)).to(torch.bfloat16), some_transform())
    assert folded.weight.dtype == folded.bias.dtype == torch.bfloat16
    assert folded(torch.ones(2, CHANNELS, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("norm", "foldable"),
    [
        (nn.LayerNorm(CHANNELS), True),
        (nn.GroupNorm(2, CHANNELS), True),
        (nn.LayerNorm(CHANNELS, elementwise_affine=False), False),
        (nn.LayerNorm(CHANNELS, bias=False), False),
        (nn.GroupNorm(2, CHANNELS, affine=False), False),
        (nn.RMSNorm(CHANNELS), False),
        (nn.BatchNorm2d(CHANNELS), False),
        (nn.Identity(), False),
    ],
    ids=["layer", "group", "layer-plain", "layer-no-bias", "group-plain", "rms", "batch", "none"],
)
def test_only_norms_with_weight_and_bias_can_be_folded_into(norm, foldable):
    """Others stay what they are, and so do the positions after them."""
    denoiser = network(torch.randn(1, 7, CHANNELS))
    block = denoiser["blocks"][0]
    block.norm1 = norm
    assert fold_into_norm(denoiser, "blocks.0.norm1", some_transform()) is foldable
    assert (block.norm1 is norm) is not foldable
    assert (block.pos_embed is None) is foldable
