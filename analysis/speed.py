"""How long one denoising step takes in every arithmetic: the table of what the inference benchmark measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

FLOATING = ("fp32", "bf16")
HEADINGS = ("One denoising step", "ms, measured", "Weights held, MB", "Beside them at most, MB")


@dataclass(frozen=True, eq=False)
class Speed:
    """Measured seconds of one denoising step, the quickest first.

    Attributes:
        sides: how it was computed.
        kinds: "fp32", "bf16", "int8", "torchao" or "quanto".
        seconds: medians, fp64 [N].
        megabytes: held by the denoiser's weights, fp64 [N].
        step_megabytes: what a step takes at most beside the weights, fp64 [N]; NaN where it could not be measured.
        arithmetic: what of the int8 model is in integers, in words.
        device: where, in words.
    """

    sides: tuple[str, ...]
    kinds: tuple[str, ...]
    seconds: np.ndarray
    megabytes: np.ndarray
    step_megabytes: np.ndarray
    arithmetic: str
    device: str

    def columns(self) -> dict[str, np.ndarray]:
        """One line per side."""
        return {
            "side": np.array(self.sides),
            "kind": np.array(self.kinds),
            "seconds": self.seconds,
            "weights_mb": self.megabytes,
            "step_mb": self.step_megabytes,
        }

    def rows(self) -> list[tuple[str, str, str, str]]:
        """One line per side in words: under `HEADINGS`."""
        columns = zip(self.sides, 1e3 * self.seconds, self.megabytes, self.step_megabytes, strict=True)
        return [
            (side, f"{ms:.1f}", f"{held:.1f}", "?" if np.isnan(beside) else f"{beside:.0f}")
            for side, ms, held, beside in columns
        ]

    def best(self, *kinds: str) -> int | None:
        """The quickest side of these kinds, as an index; None if there is none."""
        return next((i for i, kind in enumerate(self.kinds) if kind in kinds), None)

    def in_words(self) -> str:
        """Whether int8 is worth it on this machine, for people."""
        integer, floating = self.best("int8"), self.best(*FLOATING)
        if integer is None or floating is None:
            return "There is nothing to compare."
        ratio = self.seconds[integer] / self.seconds[floating]
        verdict = "faster" if ratio < 1 else "slower"
        times = max(ratio, 1 / ratio)
        return (
            f"Measured on {self.device}: the quickest int8 step ({self.sides[integer]}) takes"
            f" {1e3 * self.seconds[integer]:.0f} ms, the quickest in floating point ({self.sides[floating]})"
            f" {1e3 * self.seconds[floating]:.0f} ms: int8 is {times:.2f} times {verdict}. Its weights take"
            f" {self.megabytes[integer]:.1f} MB instead of {self.megabytes[floating]:.1f} MB."
            f" {self.arithmetic[0].upper()}{self.arithmetic[1:]}."
        )


def as_markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Results of `benchmark_inference` by title, as Markdown: every side's time and memory, and the ratios."""
    blocks = []
    for title, result in results.items():
        table = speed_table(result)
        lines = [
            f"{title}, on {table.device}:",
            "",
            f"| {' | '.join(HEADINGS)} |",
            "|---|---:|---:|---:|",
        ]
        lines += [f"| {' | '.join(row)} |" for row in table.rows()]
        ratios = {name.removeprefix("ratio_"): value for name, value in result.items() if name.startswith("ratio_")}
        known = ", ".join(f"{name.replace('_', ' ')} **{value:.2f}**" for name, value in ratios.items() if value)
        left_out = "".join(f" Left out: {side} ({reason})." for side, reason in result["left_out"].items())
        blocks.append("\n".join([*lines, "", f"Ratios: {known}. {result['placements']}.{left_out}"]))
    return "\n\n".join(blocks)


def speed_table(result: Mapping[str, Any]) -> Speed:
    """What `qvd_core.benchmarks.inference.benchmark_inference` returned, as a table."""
    sides = sorted(result["sides"].items(), key=lambda item: item[1]["seconds"])
    return Speed(
        tuple(name for name, _ in sides),
        tuple(side["kind"] for _, side in sides),
        np.array([side["seconds"] for _, side in sides]),
        np.array([side["weight_bytes"] / 1e6 for _, side in sides]),
        np.array([math.nan if side["step_bytes"] is None else side["step_bytes"] / 1e6 for _, side in sides]),
        result["placements"],
        result["device"],
    )
