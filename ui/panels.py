"""Small pieces of HTML the tabs are made of. All text that is not ours is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from analysis.architecture import RoleRow, bits_in_words, by_role, in_words, total
from qvd_core.cost import SiteCost


def cards(items: Sequence[tuple[str, str, str]]) -> str:
    """A row of figures: (label, value, note) each."""
    inner = "".join(
        f'<div class="qvd-card"><div class="label">{escape(label)}</div><div class="value">{escape(value)}</div>'
        f'<div class="note">{escape(note)}</div></div>'
        for label, value, note in items
    )
    return f'<div class="qvd-cards">{inner}</div>'


def note(text: str) -> str:
    """One subdued paragraph."""
    return f'<p class="qvd-note">{escape(text)}</p>'


def progress_bar(text: str, share: float) -> str:
    """A sentence and how far it has come, 0 to 1."""
    percent = round(100 * share)
    return (
        f'<div class="qvd-progress" role="status"><span>{escape(text)}</span>'
        f'<div class="track" role="progressbar" aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100">'
        f'<div class="fill" style="width:{percent}%"></div></div></div>'
    )


def size_cards(costs: Sequence[SiteCost], model: str) -> str:
    """What a recipe makes of a model, in four figures; all computed, none measured."""
    whole = total(by_role(costs))
    bops = whole.bops_after
    quantized = sum(cost.weight_bits is not None for cost in costs)
    return cards(
        [
            ("Quantizable", in_words(whole.parameters), f"parameters in {whole.layers} layers of {model}"),
            (
                "Weights",
                in_words(whole.bytes_after, "B"),
                f"{in_words(whole.bytes_before, 'B')} in fp16; {whole.bytes_before / whole.bytes_after:.2f}× smaller",
            ),
            (
                "Bit operations",
                "unknown" if bops is None else in_words(bops),
                "counted when a comparison calibrates"
                if bops is None
                else f"per denoiser call; {(whole.bops_before or 0) / max(bops, 1):.1f}× fewer than fp16",
            ),
            ("Integer weights", f"{quantized} of {len(costs)}", "layers; the others stay in floating point"),
        ]
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table of texts."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="qvd-scroll"><table class="qvd-table texts"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def role_table(rows: Sequence[RoleRow]) -> str:
    """Parameters, share, bits, size and bit operations of every role, and of all together."""
    widest = max(row.share for row in rows)
    head = ("Role", "Layers", "Parameters", "Share", "Weight bits", "Input bits", "fp16", "After", "BOPs", "After")
    body = "".join(_role_line(row, widest) for row in rows) + _role_line(total(rows), None)
    titles = "".join(f"<th>{title}</th>" for title in head)
    return (
        '<div class="qvd-scroll"><table class="qvd-table" data-testid="role-table">'
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _role_line(row: RoleRow, widest: float | None) -> str:
    bar = "" if widest is None else f'<span class="bar" style="width:{5 * row.share / widest:.2f}rem"></span>'
    bops = ["–" if v is None else in_words(v) for v in (row.bops_before, row.bops_after)]
    cells = [
        escape(row.role.replace("_", " ")),
        str(row.layers),
        in_words(row.parameters),
        f"{bar}{row.share:.1%}",
        _bits(row.weight_bits),
        _bits(row.activation_bits),
        in_words(row.bytes_before, "B"),
        in_words(row.bytes_after, "B"),
        *bops,
    ]
    kind = ' class="total"' if widest is None else f' data-role="{escape(row.role)}"'
    return f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _bits(bits: tuple[int | None, ...]) -> str:
    text = bits_in_words(bits)
    return f'<span class="float">{text}</span>' if bits == (None,) else text
