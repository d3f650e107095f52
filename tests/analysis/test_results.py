"""The README's tables: every number is the table's own, and nothing else of the file changes."""

from __future__ import annotations

import json
import sys

import pytest

from analysis.results import details, fidelity, gains, insert, main
from qvd_core.errors import QvdError

BEGIN, END = "<!-- results -->", "<!-- end of results -->"


SPREAD = (-3.0, 1.0, 0.5, 1.5)


def row(recipe: str, psnr: float | None, clips: int = 20) -> dict:
    estimates = {"ssim": {"value": 0.9871, "low": 0.98, "high": 0.99, "count": clips}}
    if psnr is not None:
        estimates["psnr_db"] = {"value": psnr, "low": psnr - 0.3, "high": psnr + 0.5, "count": clips}
    by_clip = {} if psnr is None else {str(clip): psnr + SPREAD[clip % 4] for clip in range(clips)}
    costs = {"weights, MB": 10.042}
    return {"recipe": recipe, "clips": clips, "estimates": estimates, "psnr_by_clip": by_clip, "costs": costs}


ROWS = [row("full precision", None), row("qvd-w8a8", 47.62), row("minmax-w8a8", 45.71), row("qvd-w4a4", 20.0)]


def test_methods_by_bits_with_the_best_in_bold():
    lines = fidelity({r["recipe"]: r for r in ROWS}).splitlines()
    assert lines[0] == "| PSNR, dB | w8a8 | w4a4 |"
    assert lines[2:] == [
        "| `minmax` | 45.7 ± 0.4 |  |",
        "| `qvd` | **47.6 ± 0.4** | **20.0 ± 0.4** |",
    ]


def test_details_of_some_recipes():
    lines = details({r["recipe"]: r for r in ROWS}, ["full precision", "qvd-w8a8"]).splitlines()
    assert lines[0] == "| recipe | clips | SSIM | weights, MB |"
    assert lines[2] == "| full precision | 20 | 0.9871 ± 0.0050 | 10 |"


def test_gains_are_means_over_the_clips_both_have():
    """Clips differ by decibels among themselves, and their differences do not."""
    before, after = row("qvd-base-w8a8", 40.0), row("qvd-w8a8", 40.25, clips=12)
    (line,) = gains({"qvd-base-w8a8": before, "qvd-w8a8": after}).splitlines()[2:]
    assert line == "| HTDQ and SCRI: QVD: `qvd-base` → `qvd` | **+0.25 ± 0.00** |"


def test_a_gain_that_may_be_none_is_not_bold():
    before, after = row("qvd-base-w4a4", 20.0), row("qvd-htdq-w4a4", 20.0)
    after["psnr_by_clip"] = {clip: value + (-1) ** int(clip) for clip, value in before["psnr_by_clip"].items()}
    (line,) = gains({r["recipe"]: r for r in (before, after)}).splitlines()[2:]
    assert "+0.00 ± 0." in line
    assert "**" not in line


def test_too_few_clips_in_common_say_nothing():
    pair = {name: row(name, 30.0, clips=2) for name in ("minmax-w8a8", "mse-w8a8")}
    assert len(gains(pair).splitlines()) == 2


def test_only_what_is_between_the_marks_changes(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    insert("new", path)
    assert path.read_text() == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    path.write_text("no marks")
    with pytest.raises(QvdError, match="no <!-- results -->"):
        insert("new", path)


def test_of_two_tables_the_row_of_more_clips_counts(tmp_path, monkeypatch):
    readme, first, second = (tmp_path / name for name in ("README.md", "a.json", "b.json"))
    readme.write_text(f"{BEGIN}{END}")
    first.write_text(json.dumps({"rows": ROWS}))
    second.write_text(json.dumps({"rows": [row("qvd-w8a8", 48.88, 256), row("minmax-w8a8", 1.0, 5)]}))
    monkeypatch.setattr(sys, "argv", ["results", str(readme), str(first), str(second)])
    main()
    text = readme.read_text()
    assert "48.9" in text
    assert "45.7" in text
    assert "47.6" not in text
    assert "| qvd-w8a8 | 256 |" in text
