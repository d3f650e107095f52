"""When does SCRI pay? `python -m tests.benchmarks.scattered_channels [--json]`

Temporal attention over made-up activations whose channels are scattered by choice: half-widths are
log-normal, one channel in a hundred is `outlier` times wider, and centres lie `offset` half-widths off zero.
These are not statistics of any model. They stand for large ones, whose few wide, off-centre channels are
widely reported, and say from where on each part of SCRI lowers the error; the last rows are the embedded
model's own inputs and weights.

Error: of softmax(q k^T) v on fresh samples, |y' - y|^2 / |y|^2, as a ratio to that without SCRI. Quantized
are the inputs (per tensor, affine) and the weights (per channel, affine). Computed, not simulated video.
"""

from __future__ import annotations

import argparse
import json
import statistics as mathematics
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qvd_core import embedded_statistics, load
from qvd_core.formats import ActivationFormat, WeightFormat
from qvd_core.layers.quantized import weight_grid
from qvd_core.methods.scri import centre_and_half_width, coverage, search_threshold, transform_at
from qvd_core.models.sites import find_inputs
from qvd_core.quantizers.channel_transform import ChannelTransform
from qvd_core.quantizers.uniform import fake_quantize, make_grid

CHANNELS, HEADS, FRAMES = 320, 8, 16  # of the widest level of AnimateDiff's motion modules at full resolution
SEQUENCES = 16
SEEDS = 3
BITS = ((8, 8), (6, 6), (4, 4))
PARTS = {"shift": (True, False), "scale": (False, True), "both": (True, True)}


@dataclass(frozen=True, eq=False)
class Attention:
    """Samples of one input [N, frames, C] and the q, k and v weights [C, C] that read it."""

    tokens: Tensor
    weights: tuple[Tensor, ...]
    heads: int

    def output(self, x: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor | None, ...]) -> Tensor:
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for w, b in zip(weights, biases, strict=True)
        )
        return F.scaled_dot_product_attention(q, k, v)

    def error(self, transform: ChannelTransform | None, bits: tuple[int, int]) -> float:
        """|y' - y|^2 / |y|^2 on the second half of the samples, with ranges of them all."""
        x, weights, biases = self.tokens, self.weights, (None,) * 3
        if transform is not None:
            x = transform.apply(x)
            weights, biases = zip(*(transform.fold(w, None) for w in weights), strict=True)
        x = fake_quantize(x, make_grid(x.min(), x.max(), bits[1], symmetric=False))
        form = WeightFormat(bits[0], symmetric=False)
        weights = tuple(fake_quantize(w, weight_grid(w, form)) for w in weights)
        fresh = slice(len(x) // 2, None)
        exact = self.output(self.tokens[fresh], self.weights, (None,) * 3)
        return float((self.output(x[fresh], weights, biases) - exact).square().sum() / exact.square().sum())

    def measured(self, bits: tuple[int, int]) -> dict[str, float]:
        """The error without SCRI, and that of each of its parts as a ratio to it; mean coverage before and after."""
        low, high = self.tokens.amin((0, 1)), self.tokens.amax((0, 1))
        found = {"error": self.error(None, bits), "coverage": float(coverage(low, high, False).mean())}
        searched = self.tokens[: len(self.tokens) // 2]
        for name, (shift, scale) in PARTS.items():
            centre, half_width = centre_and_half_width(low, high, shift)
            threshold = float("inf")
            if scale:
                threshold = search_threshold(
                    searched,
                    centre,
                    half_width,
                    self.weights,
                    WeightFormat(bits[0], symmetric=False),
                    ActivationFormat(bits[1]),
                    (self.heads, (self.weights[0].shape[0] // self.heads) ** -0.5),
                ).threshold
            transform = transform_at(centre, half_width, threshold)
            found[name] = self.error(transform, bits) / found["error"]
            found[f"coverage, {name}"] = float(
                coverage(transform.apply(low), transform.apply(high), symmetric=False).mean()
            )
        return found


def scattered(sigma: float, outlier: float, offset: float, seed: int) -> Attention:
    """Made-up samples: half-widths exp(sigma N(0, 1)), some times `outlier`; centres `offset` of them off zero."""
    generator = torch.Generator().manual_seed(seed)
    width = torch.exp(sigma * torch.randn(CHANNELS, generator=generator))
    width[: max(1, CHANNELS // 100)] *= outlier
    centre = offset * width * torch.randn(CHANNELS, generator=generator).sign()
    values = torch.randn(2 * SEQUENCES, FRAMES, CHANNELS, generator=generator) / 3
    # Weights that read wide channels are small in trained models, or these alone would decide the output.
    weights = [torch.randn(CHANNELS, CHANNELS, generator=generator) / CHANNELS**0.5 / width.sqrt() for _ in range(3)]
    return Attention(centre + width * values, tuple(weights), HEADS)


def embedded() -> list[Attention]:
    """The temporal self-attentions of the embedded model, on the samples of its calibration."""
    model = load("animatediff-mini")
    statistics = embedded_statistics(model)
    roles = {site.name: site.role for site in model.sites}
    found = []
    for shared in find_inputs(model.denoiser, model.sites):
        if len(shared.consumers) == 3 and roles[shared.consumers[0]] == "temporal_attention":
            tokens = statistics.tokens[shared.consumers[0]].flatten(0, 1)
            order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))  # halves of all steps
            module = model.denoiser.get_submodule(shared.consumers[0].rpartition(".")[0])
            weights = tuple(model.denoiser.get_submodule(name).weight.detach().float() for name in shared.consumers)
            found.append(Attention(tokens[order].float(), weights, module.heads))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scattered_channels", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cases: dict[str, list[Attention]] = {}
    for sigma, outlier, offset in ((0.3, 1, 0), (0.3, 1, 2), (1, 1, 0), (1, 1, 2), (0.3, 30, 0), (0.3, 30, 2)):
        name = f"sigma {sigma}, outliers x{outlier}, offset {offset}"
        cases[name] = [scattered(sigma, outlier, offset, seed) for seed in range(SEEDS)]
    cases["embedded model"] = embedded()

    rows = []
    with torch.inference_mode():
        for name, attentions in cases.items():
            for bits in BITS:
                each = [attention.measured(bits) for attention in attentions]
                medians = {key: mathematics.median(one[key] for one in each) for key in each[0]}
                rows.append({"activations": name, "weight_bits": bits[0], "input_bits": bits[1], **medians})
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    heads = ["activations", "bits", "error", *PARTS, "coverage", "coverage, both"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        cells = [row["activations"], f"w{row['weight_bits']}a{row['input_bits']}", f"{row['error']:.2g}"]
        cells += [f"{row[head]:.2f}" for head in heads[3:]]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
