"""Two short clips compared frame by frame: full precision next to its quantized self.

1. Frames travel as lossless sprite sheets (film strips folded into a grid) inside data URIs, so no video
   codec can add artefacts of its own and no file has to outlive the page.
2. The browser cuts both sheets with one frame index: the two sides cannot drift apart.
3. Scores come in as numbers, measured on the raw frames; the browser computes none but the difference
   image, which is |reference - quantized| of the very pixels it shows.

`comparator` makes the component; its value is a `comparison_payload`, a `preview_payload` while sampling
runs, or None. Give events that feed it `show_progress="hidden"`, else Gradio dims it at every update.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from qvd_core.errors import ComparisonError

ASSETS = Path(__file__).parents[1] / "assets" / "ui"
SCRIPTS = ("comparator_chart.js", "comparator.js")
HTML_TEMPLATE = (ASSETS / "comparator.html").read_text(encoding="utf-8")
CSS_TEMPLATE = (ASSETS / "comparator.css").read_text(encoding="utf-8")
JS_ON_LOAD = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)

PLACEHOLDER = "Generate a pair of clips to compare them here, frame by frame."

# Phones refuse images of more than 2^24 pixels; a sheet never exceeds 4096 x 4096.
SHEET_SIDE = 4096


def comparator(*, placeholder: str = PLACEHOLDER, **kwargs: Any) -> gr.HTML:
    """Make the comparison panel; `kwargs` go to `gr.HTML` (`value`, `visible`, `elem_id`, ...).

    Args:
        placeholder: What the empty panel says before the first comparison.
    """
    return gr.HTML(
        html_template=HTML_TEMPLATE,
        css_template=CSS_TEMPLATE,
        js_on_load=JS_ON_LOAD,
        apply_default_css=False,
        placeholder=placeholder,
        **kwargs,
    )


def comparison_payload(
    reference: np.ndarray,
    quantized: np.ndarray,
    *,
    fps: float,
    labels: tuple[str, str],
    psnr_by_frame: Sequence[float | None],
    ssim_by_frame: Sequence[float],
) -> dict:
    """Pack two clips, uint8 [frames, height, width, 3], and their scores for the panel.

    Args:
        fps: Frames per second at speed 1×.
        labels: Names of reference and quantized clip, such as "Full precision · fp32".
        psnr_by_frame: PSNR in dB; None (or infinity) marks a frame identical on both sides.
        ssim_by_frame: SSIM, one number per frame.
    """
    _check_clips(reference, quantized)
    if not (math.isfinite(fps) and fps > 0):
        raise ComparisonError(f"Cannot play at fps={fps}; give a number above zero.")
    if len(labels) != 2:
        raise ComparisonError(f"Two clips need two labels; received {len(labels)}.")
    frames, height, width, _ = reference.shape
    columns = min(frames, SHEET_SIDE // width)
    per_sheet = columns * (SHEET_SIDE // height)
    return {
        "fps": float(fps),
        "frames": frames,
        "width": width,
        "height": height,
        "columns": columns,
        "frames_per_sheet": per_sheet,
        "clips": [
            {"label": str(label), "sheets": _sheets(clip, columns, per_sheet)}
            for label, clip in zip(labels, (reference, quantized), strict=True)
        ],
        # Infinity is not JSON; an identical frame is null on the wire.
        "psnr": [None if v is None or v == math.inf else v for v in _scores("PSNR", psnr_by_frame, frames)],
        "ssim": _scores("SSIM", ssim_by_frame, frames),
    }


def preview_payload(image: np.ndarray | None, text: str) -> dict:
    """Pack one live picture, uint8 [height, width, 3], and its caption, shown while sampling runs."""
    if image is not None and (image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3):
        received = f"{image.dtype} {list(image.shape)}"
        raise ComparisonError(f"A preview is uint8 [height, width, 3]; received {received}.")
    return {"preview": None if image is None else _data_uri(image), "text": text}


def _check_clips(reference: np.ndarray, quantized: np.ndarray) -> None:
    for name, clip in (("reference", reference), ("quantized", quantized)):
        if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or 0 in clip.shape:
            wanted, received = "uint8 [frames, height, width, 3]", f"{clip.dtype} {list(clip.shape)}"
            raise ComparisonError(f"The {name} clip must be {wanted}; received {received}.")
    if reference.shape != quantized.shape:
        raise ComparisonError(
            f"The clips differ in shape: {list(reference.shape)} and {list(quantized.shape)}; "
            "generate both with the same settings."
        )
    if max(reference.shape[1:3]) > SHEET_SIDE:
        raise ComparisonError(f"Frames of {list(reference.shape[1:3])} exceed {SHEET_SIDE} pixels a side.")


def _scores(name: str, values: Sequence[float | None], frames: int) -> list[float | None]:
    values = [None if v is None else float(v) for v in values]
    if len(values) != frames:
        raise ComparisonError(f"{name} needs one value per frame: {frames} frames, {len(values)} values.")
    if any(v is not None and math.isnan(v) for v in values):
        raise ComparisonError(f"{name} contains NaN; score the frames again.")
    return values


def _sheets(clip: np.ndarray, columns: int, per_sheet: int) -> list[str]:
    """Fold frames into grids, row by row: frame i of a sheet sits at column i % columns, row i // columns."""
    _, height, width, _ = clip.shape
    sheets = []
    for start in range(0, len(clip), per_sheet):
        part = clip[start : start + per_sheet]
        rows = math.ceil(len(part) / columns)
        grid = np.zeros((rows * columns, height, width, 3), dtype=np.uint8)
        grid[: len(part)] = part
        grid = grid.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
        sheets.append(_data_uri(grid.reshape(rows * height, columns * width, 3)))
    return sheets


def _data_uri(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    # Lossless; method and quality only trade encoding time for size, and these are fast.
    Image.fromarray(image).save(buffer, format="WEBP", lossless=True, method=1, quality=20)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
