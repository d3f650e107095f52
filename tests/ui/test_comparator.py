"""What the comparator sends to the browser: lossless pictures, honest numbers, early refusals."""

from __future__ import annotations

import base64
import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from qvd_core.errors import ComparisonError
from ui import comparator as module
from ui.comparator import comparison_payload, preview_payload


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pack(reference: np.ndarray, quantized: np.ndarray, **changes) -> dict:
    frames = len(reference)
    settings = {
        "fps": 8,
        "labels": ("Full precision · fp32", "Quantized · minmax-w4a4"),
        "psnr_by_frame": [30.0] * frames,
        "ssim_by_frame": [0.9] * frames,
    }
    return comparison_payload(reference, quantized, **(settings | changes))


def picture(uri: str) -> np.ndarray:
    head, data = uri.split(",", 1)
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def unpack(payload: dict, side: int) -> np.ndarray:
    """Cut the frames out again, the way the browser does."""
    height, width, columns = payload["height"], payload["width"], payload["columns"]
    sheets = [picture(uri) for uri in payload["clips"][side]["sheets"]]
    frames = []
    for index in range(payload["frames"]):
        sheet, cell = divmod(index, payload["frames_per_sheet"])
        row, column = divmod(cell, columns)
        frames.append(sheets[sheet][row * height : (row + 1) * height, column * width : (column + 1) * width])
    return np.stack(frames)


@pytest.mark.parametrize("side_limit", [4096, 48], ids=["one-sheet", "several-sheets"])
def test_frames_survive_exactly(monkeypatch, side_limit):
    monkeypatch.setattr(module, "SHEET_SIDE", side_limit)
    reference, quantized = noise(7, 16, 20, 3), noise(7, 16, 20, 3, seed=1)
    payload = json.loads(json.dumps(pack(reference, quantized), allow_nan=False))
    np.testing.assert_array_equal(unpack(payload, 0), reference)
    np.testing.assert_array_equal(unpack(payload, 1), quantized)
    assert len(payload["clips"][0]["sheets"]) == (1 if side_limit == 4096 else 2)


def test_sheets_of_a_large_clip_stay_within_the_limit():
    clip = np.zeros((32, 512, 512, 3), dtype=np.uint8)
    payload = pack(clip, clip)
    shapes = [picture(uri).shape for uri in payload["clips"][0]["sheets"]]
    assert shapes == [(2048, 4096, 3)]


def test_labels_and_speed_travel_along():
    payload = pack(noise(2, 8, 8, 3), noise(2, 8, 8, 3), fps=12.5)
    assert payload["fps"] == 12.5
    assert [clip["label"] for clip in payload["clips"]] == [
        "Full precision · fp32",
        "Quantized · minmax-w4a4",
    ]


def test_identical_frames_are_null_because_infinity_is_not_json():
    clip = noise(3, 8, 8, 3)
    payload = pack(clip, clip, psnr_by_frame=[None, math.inf, np.float32(31.5)], ssim_by_frame=[1, 1, 0.9])
    assert payload["psnr"] == [None, None, 31.5]
    assert payload["ssim"] == [1.0, 1.0, 0.9]
    json.dumps(payload, allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"psnr_by_frame": [30.0]}, "PSNR needs one value per frame: 2 frames, 1 values"),
        ({"ssim_by_frame": [0.9, math.nan]}, "SSIM contains NaN"),
        ({"fps": 0}, "fps=0"),
        ({"fps": math.nan}, "fps=nan"),
        ({"labels": ("one",)}, "two labels; received 1"),
    ],
    ids=["short-psnr", "nan-ssim", "zero-fps", "nan-fps", "one-label"],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ComparisonError, match=message):
        pack(noise(2, 8, 8, 3), noise(2, 8, 8, 3), **changes)


@pytest.mark.parametrize(
    ("reference", "quantized", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), noise(2, 8, 8, 3), r"reference clip must be uint8.*float32"),
        (noise(2, 8, 8, 3), noise(2, 8, 8), r"quantized clip must be uint8.*\[2, 8, 8\]"),
        (noise(2, 8, 8, 3), noise(3, 8, 8, 3), r"differ in shape: \[2, 8, 8, 3\] and \[3, 8, 8, 3\]"),
        (noise(0, 8, 8, 3), noise(0, 8, 8, 3), r"must be uint8 \[frames"),
        (np.zeros((1, 1, 5000, 3), np.uint8), np.zeros((1, 1, 5000, 3), np.uint8), "exceed 4096"),
    ],
    ids=["float", "no-channels", "lengths", "empty", "too-wide"],
)
def test_wrong_clips_are_refused(reference, quantized, message):
    with pytest.raises(ComparisonError, match=message):
        pack(reference, quantized)


def test_preview():
    image = noise(16, 20, 3)
    payload = preview_payload(image, "Step 3 of 8")
    assert payload["text"] == "Step 3 of 8"
    np.testing.assert_array_equal(picture(payload["preview"]), image)
    assert preview_payload(None, "Starting") == {"preview": None, "text": "Starting"}
    with pytest.raises(ComparisonError, match=r"float64 \[16, 20, 3\]"):
        preview_payload(image / 255, "Step 3 of 8")


def test_assets_pass_unchanged_through_the_template_engine():
    """Gradio compiles html and css with Handlebars, then evaluates them as a JavaScript template literal."""
    for text in (module.HTML_TEMPLATE, module.CSS_TEMPLATE):
        for forbidden in ("`", "${", "{{", "\\"):
            assert forbidden not in text


def test_factory_hands_settings_to_gradio():
    panel = module.comparator(placeholder="Nothing yet.", elem_id="compare", visible=False)
    assert (panel.elem_id, panel.visible, panel.props) == ("compare", False, {"placeholder": "Nothing yet."})
