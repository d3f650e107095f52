"""How pieces of a quantized network describe themselves in a checkpoint, and where they are put back.

A piece's `describe` gives a small JSON-ready dictionary with its "kind"; its class method `rebuild` makes the
same piece without its numbers, on the meta device. Descriptions come from files of unknown origin: nothing
in one names code, and `read_fields` refuses whatever is not expected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qvd_core.errors import ModelError, RecipeError
from qvd_core.formats import ActivationFormat

if TYPE_CHECKING:
    from qvd_core.layers.clock import StepClock

Description = dict[str, Any]
LARGEST_COUNT = 1 << 20


@dataclass(frozen=True)
class Place:
    """Where a piece belongs.

    Attributes:
        name: module path of the layer.
        original: the layer it stands for, of which only shapes are read; kind: its kind, as in `Site`.
        clock: of the denoiser; None if it has none.
    """

    name: str
    original: Any
    kind: str
    clock: StepClock | None


def read_fields(values: Any, where: str, **types: type | tuple[type, ...]) -> Description:
    """`values` if it has exactly the fields of `types` (and "kind"), each of its type; counts are 1 to 2^20.

    Raises:
        ModelError: otherwise, with what was found.
    """
    if not isinstance(values, dict) or set(values) - {"kind"} != set(types):
        wanted = ", ".join(types) or "nothing"
        raise ModelError(f"The checkpoint describes {where} as {_short(values)}, where {wanted} should be given.")
    for field, expected in types.items():
        value = values[field]
        kinds = expected if isinstance(expected, tuple) else (expected,)
        good = type(value) in kinds and (type(value) is not int or 0 < value <= LARGEST_COUNT)
        if not good:
            raise ModelError(f"The checkpoint describes {where} with {field} = {_short(value)}, which is out of range.")
    return values


def read_format(values: Description, where: str, **more: Any) -> ActivationFormat:
    """The input format with a description's "bits" and "symmetric"."""
    try:
        return ActivationFormat(values["bits"], symmetric=values["symmetric"], **more)
    except RecipeError as error:
        raise ModelError(f"The checkpoint describes {where} wrongly: {error}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
