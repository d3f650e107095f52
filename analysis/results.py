"""The tables of the README, from what `python -m qvd_core evaluate --out table.json` measured.

    python -m analysis.results README.md table.json headline.json

puts them between the README's marks `<!-- results -->` and `<!-- end of results -->`. Where several files know a
recipe, the row of more clips is taken. What `python -m qvd_core benchmark inference --out` wrote goes between
`<!-- speed -->` and `<!-- end of speed -->`:

    python -m analysis.results README.md --speed embedded.json full_size.json
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.speed import as_markdown
from qvd_core.errors import QvdError
from qvd_core.metrics.frechet import bootstrap_interval
from qvd_core.recipe import BITS, METHODS
from qvd_core.storage import replacing

DETAILS = {
    "ssim": ("SSIM", 4),
    "latent_error": ("latent error", 3),
    "lpips": ("LPIPS (AlexNet)", 4),
    "fvd": ("FVD (I3D)", 1),
    "frame_fid": ("frame FID (Inception)", 2),
    "caption": ("caption read back", 3),
    "motion_smoothness": ("motion smoothness (RIFE)", 4),
}
"""Measures of the second table, with their headings and digits."""

FEWEST_PAIRS = 3
PARTS = (
    ("ranges of least error, not extremes", "minmax", "mse"),
    ("a range per frame", "mse", "qvd-base"),
    ("HTDQ on temporal features", "qvd-base", "qvd-htdq"),
    ("the time path exact (control)", "qvd-base", "tabulated"),
    ("SCRI's shift at temporal attention", "qvd-base", "qvd-shift"),
    ("SCRI's scale there", "qvd-base", "qvd-scale"),
    ("SCRI, both", "qvd-base", "qvd-scri"),
    ("HTDQ and SCRI: QVD", "qvd-base", "qvd"),
    ("QVD against all static ranges' extremes", "minmax", "qvd"),
    ("QVD against a range per token", "dynamic", "qvd"),
)
"""What is changed from one method to another."""

COSTS = ("weights, MB", "GBOPs per call", "search, s")


def fidelity(rows: Mapping[str, Any]) -> str:
    """PSNR to the same-seed reference, methods by bits, as Markdown; the best of each column is bold."""
    widths = _widths(rows)
    best = {
        bits: max((_value(rows, f"{method}-{bits}", "psnr_db") or -math.inf) for method in METHODS) for bits in widths
    }
    lines = ["| PSNR, dB | " + " | ".join(widths) + " |", "|---|" + "---:|" * len(widths)]
    for method in METHODS:
        cells = []
        for bits in widths:
            text = _cell(rows, f"{method}-{bits}", "psnr_db", 1)
            bold = text and _value(rows, f"{method}-{bits}", "psnr_db") == best[bits]
            cells.append(f"**{text}**" if bold else text)
        if any(cells):
            lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _widths(rows: Mapping[str, Any]) -> list[str]:
    """The bits there are rows of."""
    widths = [f"w{w}a{a}" for w, a in BITS]
    return [bits for bits in widths if any(name.endswith(f"-{bits}") for name in rows)]


def details(rows: Mapping[str, Any], names: Sequence[str]) -> str:
    """All other measures and the costs of some recipes, as Markdown."""
    keys = [key for key in DETAILS if any(_value(rows, name, key) is not None for name in names)]
    costs = [cost for cost in COSTS if any(cost in rows[name]["costs"] for name in names)]
    heads = ["recipe", "clips", *(DETAILS[key][0] for key in keys), *costs]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for name in names:
        cells = [name, str(rows[name]["clips"]), *(_cell(rows, name, key, DETAILS[key][1]) for key in keys)]
        cells += [f"{rows[name]['costs'][cost]:.3g}" if cost in rows[name]["costs"] else "" for cost in costs]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gains(rows: Mapping[str, Any]) -> str:
    """What one change brings in dB of PSNR, as Markdown: the mean over clips that both methods made."""
    widths = _widths(rows)
    lines = ["| PSNR gained, dB | " + " | ".join(widths) + " |", "|---|" + "---:|" * len(widths)]
    for label, before, after in PARTS:
        cells = [_gain(rows.get(f"{before}-{bits}"), rows.get(f"{after}-{bits}")) for bits in widths]
        if any(cells):
            lines.append(f"| {label}: `{before}` → `{after}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _gain(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    if before is None or after is None:
        return ""
    first, second = before["psnr_by_clip"], after["psnr_by_clip"]
    both = sorted(first.keys() & second.keys())
    if len(both) < FEWEST_PAIRS:
        return ""
    difference = np.array([second[clip] - first[clip] for clip in both])
    low, high = bootstrap_interval(np.mean, difference)
    text = f"{difference.mean():+.2f} ± {(high - low) / 2:.2f}"
    return f"**{text}**" if low > 0 or high < 0 else text


def insert(text: str, path: Path, mark: str = "results") -> None:
    """Put `text` between the marks `<!-- MARK -->` and `<!-- end of MARK -->` of the file at `path`.

    Raises:
        QvdError: it has no marks.
        StorageError: it cannot be written.
    """
    first, last = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, begin, rest = path.read_text().partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end):
        raise QvdError(f"{path} has no {first} … {last} to put the tables between.")
    with replacing(path) as scratch:
        scratch.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.results", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("readme", type=Path)
    parser.add_argument("tables", type=Path, nargs="*", help="what `evaluate --out` wrote")
    parser.add_argument("--speed", type=Path, nargs="+", default=[], help="what `benchmark inference --out` wrote")
    arguments = parser.parse_args()
    if arguments.speed:
        measured = [json.loads(path.read_text()) for path in arguments.speed]
        insert(as_markdown({result["model"]: result for result in measured}), arguments.readme, "speed")
    if arguments.tables:
        _insert_tables(arguments.tables, arguments.readme)


def _insert_tables(tables: Sequence[Path], readme: Path) -> None:
    rows: dict[str, Any] = {}
    for table in tables:
        for row in json.loads(table.read_text())["rows"]:
            if row["recipe"] not in rows or row["clips"] > rows[row["recipe"]]["clips"]:
                rows[row["recipe"]] = row
    fewest = min(row["clips"] for row in rows.values())
    others = [name for name in rows if not any(name.startswith(f"{method}-w") for method in METHODS)]
    shown = ("minmax", "dynamic", "smoothquant", "mse", "qvd-base", "qvd")
    headline = [f"{method}-w{w}a{a}" for w, a in BITS[:3] for method in shown]
    names = [*others, *(name for name in headline if name in rows)]
    note = (
        f"Simulated; {fewest} held-out captions or more for every row; ± is half of a 95 % bootstrap interval over"
        " clips. Frechet distances of so few clips are mostly bias: they order rows of this table, whose floor is the"
        " row of other seeds, and compare with nothing published."
    )
    paired = "Clip by clip, what one change brings (bold where the interval leaves out zero):"
    insert(f"{fidelity(rows)}\n\n{paired}\n\n{gains(rows)}\n\n{details(rows, names)}\n\n{note}", readme)


def _value(rows: Mapping[str, Any], name: str, key: str) -> float | None:
    estimate = rows.get(name, {}).get("estimates", {}).get(key)
    return None if estimate is None else float(estimate["value"])


def _cell(rows: Mapping[str, Any], name: str, key: str, digits: int) -> str:
    if _value(rows, name, key) is None:
        return ""
    estimate = rows[name]["estimates"][key]
    text = f"{estimate['value']:.{digits}f}"
    if estimate["low"] is None:
        return text
    return f"{text} ± {(estimate['high'] - estimate['low']) / 2:.{digits}f}"


if __name__ == "__main__":
    main()
