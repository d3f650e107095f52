"""What a model consists of and what a recipe makes of it, by role: the table behind the Model tab."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qvd_core.cost import SiteCost


@dataclass(frozen=True)
class RoleRow:
    """All layers of one role together.

    Attributes:
        role: as in `Site.role`; layers: how many; parameters: in all of them.
        share: of the model's quantizable parameters, 0 to 1.
        weight_bits, activation_bits: the distinct widths used, ascending; None, the last, stands for floating point.
        bytes_before, bytes_after: of weights, biases and scales.
        bops_before, bops_after: of one denoiser call; None before the model has been calibrated.
    """

    role: str
    layers: int
    parameters: int
    share: float
    weight_bits: tuple[int | None, ...]
    activation_bits: tuple[int | None, ...]
    bytes_before: int
    bytes_after: int
    bops_before: int | None
    bops_after: int | None


def block_of(site: str) -> str:
    """The part of the network a layer is in: "down_blocks.0", "mid_block", ..."""
    parts = site.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and parts[1].isdigit() else parts[0]


def by_role(costs: Sequence[SiteCost]) -> list[RoleRow]:
    """One row per role, the largest first."""
    everything = sum(cost.site.parameters for cost in costs)
    rows = []
    for role in {cost.site.role for cost in costs}:
        own = [cost for cost in costs if cost.site.role == role]
        parameters = sum(cost.site.parameters for cost in own)
        rows.append(
            RoleRow(
                role=role,
                layers=len(own),
                parameters=parameters,
                share=parameters / everything,
                weight_bits=_distinct(cost.weight_bits for cost in own),
                activation_bits=_distinct(cost.activation_bits for cost in own),
                bytes_before=sum(cost.bytes_before for cost in own),
                bytes_after=sum(cost.bytes_after for cost in own),
                bops_before=_sum_known([cost.bops_before for cost in own]),
                bops_after=_sum_known([cost.bops_after for cost in own]),
            )
        )
    return sorted(rows, key=lambda row: (-row.parameters, row.role))


def total(rows: Sequence[RoleRow]) -> RoleRow:
    """All rows added up, under the name "all"."""
    return RoleRow(
        role="all",
        layers=sum(row.layers for row in rows),
        parameters=sum(row.parameters for row in rows),
        share=sum(row.share for row in rows),
        weight_bits=_distinct(bits for row in rows for bits in row.weight_bits),
        activation_bits=_distinct(bits for row in rows for bits in row.activation_bits),
        bytes_before=sum(row.bytes_before for row in rows),
        bytes_after=sum(row.bytes_after for row in rows),
        bops_before=_sum_known([row.bops_before for row in rows]),
        bops_after=_sum_known([row.bops_after for row in rows]),
    )


def in_words(count: float, unit: str = "") -> str:
    """A large number for humans, three digits: 9844688 is "9.84 M", with "B" for its unit "9.84 MB"."""
    for power, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= power:
            return f"{count / power:.3g} {letter}{unit}"
    return f"{count:.3g} {unit}".rstrip()


def bits_in_words(bits: Sequence[int | None]) -> str:
    """The widths a role uses: "4", "4, 8", "float" or "4, float"."""
    return ", ".join("float" if width is None else str(width) for width in bits)


def _distinct(bits: Iterable[int | None]) -> tuple[int | None, ...]:
    return tuple(sorted(set(bits), key=lambda width: (width is None, width or 0)))


def _sum_known(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
