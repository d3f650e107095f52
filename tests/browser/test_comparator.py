"""The comparator in a real browser: exact pixels, one frame on both sides, controls, life cycle.

Run with: python -m pytest tests/browser/test_comparator.py. Skipped without chromium or playwright.
"""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

pytest.importorskip("playwright.sync_api", reason="needs playwright")

import gradio as gr
from playwright.sync_api import Browser, Locator, Page, expect

from ui import comparator as module
from ui.comparator import comparator, comparison_payload, preview_payload

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH"),
]

FRAMES, HEIGHT, WIDTH = 7, 16, 20
FPS = 20


def noise(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


REFERENCE = noise(FRAMES, HEIGHT, WIDTH, 3, seed=1)
QUANTIZED = noise(FRAMES, HEIGHT, WIDTH, 3, seed=2)
QUANTIZED[1] = REFERENCE[1]
# Frame 0 differs by 3, 50 and 0 levels in red, green and blue: amplified ×4 that is 12, 200 and 0.
REFERENCE[0] = (100, 100, 100)
QUANTIZED[0] = (103, 50, 100)
PREVIEW = noise(HEIGHT, WIDTH, 3, seed=3)


def clips_payload(reference: np.ndarray = REFERENCE, quantized: np.ndarray = QUANTIZED) -> dict:
    frames = len(reference)
    return comparison_payload(
        reference,
        quantized,
        fps=FPS,
        labels=("Full precision · fp32", "Quantized · minmax-w4a4"),
        psnr_by_frame=[None if i == 1 else 30.0 + i for i in range(frames)],
        ssim_by_frame=[1.0 if i == 1 else 0.9 + i / 100 for i in range(frames)],
    )


def payload_of_several_sheets() -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHEET_SIDE", 48)
        return clips_payload()


VALUES = {
    "clips": clips_payload(),
    "sheets": payload_of_several_sheets(),
    "other": clips_payload(REFERENCE[2:5], QUANTIZED[2:5]),
    "preview": preview_payload(PREVIEW, "Sampling, step 3 of 8"),
    "later": preview_payload(255 - PREVIEW, "Sampling, step 4 of 8"),
    "starting": preview_payload(None, "Starting"),
    "nothing": None,
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A page with two comparators and a button for every value the first may get."""
    with gr.Blocks() as demo:
        first = comparator(elem_id="first", placeholder="Nothing to compare yet.")
        comparator(value=VALUES["other"], elem_id="second")
        for name, value in VALUES.items():
            gr.Button(name, elem_id=f"send-{name}").click(
                lambda value=value: value, None, first, show_progress="hidden"
            )
        for name, shown in (("hide", False), ("unhide", True)):
            gr.Button(name, elem_id=f"send-{name}").click(
                lambda shown=shown: gr.update(visible=shown), None, first, show_progress="hidden"
            )
    try:
        yield demo.launch(prevent_thread_lock=True, quiet=True, run_history=False)[1]
    finally:
        demo.close()


@pytest.fixture
def open_page(chromium: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Open the page; at the end of the test, nothing may have been written to the error console."""
    errors: list[str] = []
    contexts = []

    def open_it(motion: bool = False, **options) -> Page:
        context = chromium.new_context(
            reduced_motion="no-preference" if motion else "reduce",
            viewport=options.pop("viewport", {"width": 1280, "height": 1600}),
            **options,
        )
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        first_panel(page).wait_for()
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not errors


def first_panel(page: Page) -> Locator:
    return page.locator("#first").get_by_test_id("comparator")


def send(page: Page, name: str) -> Locator:
    """Have the server send a value; return the panel once it shows it."""
    panel = first_panel(page)
    page.locator(f"#send-{name}").click()
    value = VALUES[name]
    if value is None:
        expect(panel).to_have_attribute("data-state", "empty")
    elif "preview" in value:
        expect(panel.get_by_test_id("comparator-preview-text")).to_have_text(value["text"])
    else:
        expect(panel).to_have_attribute("data-state", "ready")
        expect(panel.get_by_test_id("comparator-frame")).to_contain_text(f"/ {value['frames']}")
    return panel


def control(panel: Locator, name: str) -> Locator:
    return panel.get_by_test_id(f"comparator-{name}")


def pixels(panel: Locator, name: str) -> np.ndarray:
    """Read a canvas back, uint8 [height, width, 3]."""
    size, data = control(panel, name).evaluate(
        """canvas => {
            const {width, height} = canvas;
            const data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
            return [[height, width], btoa(String.fromCharCode(...data))];
        }"""
    )
    rgba = np.frombuffer(base64.b64decode(data), np.uint8).reshape(*size, 4)
    assert (rgba[..., 3] == 255).all()
    return rgba[..., :3]


def expect_frame(panel: Locator, index: int, frames: int = FRAMES) -> None:
    expect(panel).to_have_attribute("data-frame", str(index))
    expect(control(panel, "frame")).to_have_text(f"frame {index + 1} / {frames}")


@pytest.mark.parametrize("name", ["clips", "sheets"])
def test_stepping_shows_the_same_exact_frame_on_both_sides(open_page, name):
    panel = send(open_page(), name)
    for step in range(FRAMES + 1):
        index = step % FRAMES
        expect_frame(panel, index)
        np.testing.assert_array_equal(pixels(panel, "reference"), REFERENCE[index])
        np.testing.assert_array_equal(pixels(panel, "quantized"), QUANTIZED[index])
        control(panel, "next").click()
    control(panel, "previous").click()
    expect_frame(panel, 0)


def test_small_clips_are_enlarged_with_hard_pixels(open_page):
    panel = send(open_page(), "clips")
    boxes = [control(panel, side).bounding_box() for side in ("reference", "quantized")]
    assert boxes[0]["width"] == boxes[1]["width"] >= 360
    assert boxes[0]["y"] == boxes[1]["y"]
    rendering = control(panel, "reference").evaluate("canvas => getComputedStyle(canvas).imageRendering")
    assert rendering == "pixelated"


def test_wipe_shows_reference_left_and_quantized_right_of_the_divider(open_page):
    page = open_page()
    panel = send(page, "clips")
    control(panel, "mode-wipe").click()
    control(panel, "next").click()
    control(panel, "next").click()

    def expect_divider(column: int) -> None:
        expect(control(panel, "divider")).to_have_attribute("aria-valuenow", str(column))
        view = pixels(panel, "view")
        np.testing.assert_array_equal(view[:, :column], REFERENCE[2][:, :column])
        np.testing.assert_array_equal(view[:, column:], QUANTIZED[2][:, column:])

    expect_divider(WIDTH // 2)
    control(panel, "divider").press("ArrowRight")
    expect_divider(WIDTH // 2 + 1)
    control(panel, "divider").press("Home")
    expect_divider(0)
    control(panel, "divider").press("End")
    expect_divider(WIDTH)
    box = control(panel, "view").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 60, steps=3)
    page.mouse.up()
    expect_divider(WIDTH // 4)
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 60)
    expect_divider(WIDTH // 4)
    expect_frame(panel, 2)


def test_difference_is_the_amplified_absolute_difference(open_page):
    panel = send(open_page(), "clips")
    control(panel, "mode-difference").click()
    expect(control(panel, "difference-label")).to_contain_text("amplified ×4")
    expect(control(panel, "difference-note")).to_contain_text("50 of 255")
    np.testing.assert_array_equal(pixels(panel, "view"), np.full((HEIGHT, WIDTH, 3), (12, 200, 0)))
    for gain in (1, 4, 16):
        control(panel, f"gain-{gain}").click()
        expect(control(panel, "difference-label")).to_contain_text(f"×{gain}")
        for index in (1, 2):
            control(panel, "next").click()
            expect_frame(panel, index)
            wide = np.abs(REFERENCE[index].astype(int) - QUANTIZED[index])
            np.testing.assert_array_equal(pixels(panel, "view"), np.minimum(255, gain * wide))
        panel.press("Home")


def test_scrubbing_and_keyboard(open_page):
    panel = send(open_page(), "clips")
    control(panel, "scrub").fill("4")
    expect_frame(panel, 4)
    np.testing.assert_array_equal(pixels(panel, "quantized"), QUANTIZED[4])
    control(panel, "scrub").press("ArrowRight")
    expect_frame(panel, 5)
    stage = control(panel, "stage")
    for key, index in (("ArrowRight", 6), ("ArrowLeft", 5), ("Home", 0), ("End", 6)):
        stage.press(key)
        expect_frame(panel, index)
    stage.press(" ")
    expect(panel).to_have_attribute("data-playing", "true")
    stage.press(" ")
    expect(panel).to_have_attribute("data-playing", "false")
    # A button pressed with the mouse must not swallow the next space.
    control(panel, "mode-wipe").click()
    panel.page.keyboard.press(" ")
    expect(panel).to_have_attribute("data-playing", "true")


def test_play_advances_and_pause_stops(open_page):
    panel = send(open_page(), "clips")
    expect_frame(panel, 0)
    control(panel, "play").click()
    expect(control(panel, "play")).to_have_attribute("aria-label", "Pause")
    expect(panel).not_to_have_attribute("data-frame", "0")
    control(panel, "play").click()
    expect(control(panel, "play")).to_have_attribute("aria-label", "Play")
    stopped_at = panel.get_attribute("data-frame")
    panel.page.wait_for_timeout(300)
    assert panel.get_attribute("data-frame") == stopped_at


def test_without_loop_playing_ends_at_the_last_frame(open_page):
    panel = send(open_page(), "clips")
    control(panel, "loop").click()
    expect(control(panel, "loop")).to_have_attribute("aria-pressed", "false")
    control(panel, "play").click()
    expect_frame(panel, FRAMES - 1)
    expect(panel).to_have_attribute("data-playing", "false")
    control(panel, "play").click()
    expect(panel).not_to_have_attribute("data-frame", str(FRAMES - 1))


def test_speed_slows_playing_down(open_page):
    panel = send(open_page(), "clips")
    control(panel, "loop").click()
    control(panel, "speed-0.25").click()
    began = time.monotonic()
    control(panel, "play").click()
    expect_frame(panel, FRAMES - 1)
    # Six steps of four times 1/FPS; a loaded machine can only take longer.
    assert time.monotonic() - began >= 0.95 * (FRAMES - 1) * 4 / FPS


@pytest.mark.parametrize("motion", [True, False], ids=["motion", "reduced-motion"])
def test_new_value_starts_over_and_plays_unless_motion_is_reduced(open_page, motion):
    page = open_page(motion=motion)
    panel = send(page, "clips")
    panel.press("End")
    expect_frame(panel, FRAMES - 1)
    panel = send(page, "other")
    expect(panel).to_have_attribute("data-playing", str(motion).lower())
    panel.press("Home")
    np.testing.assert_array_equal(pixels(panel, "reference"), REFERENCE[2])
    np.testing.assert_array_equal(pixels(panel, "quantized"), QUANTIZED[2])
    send(page, "nothing")
    expect(control(panel, "placeholder")).to_have_text("Nothing to compare yet.")
    expect(control(panel, "stage")).to_be_hidden()


def test_charts_show_values_and_jump_to_frames(open_page):
    page = open_page()
    panel = send(page, "clips")
    chart = control(panel, "psnr")
    assert "lowest 30.00 dB at frame 1" in chart.get_attribute("aria-label")
    assert "1 of 7 frames identical" in chart.get_attribute("aria-label")
    expect(chart).to_contain_text("PSNR (dB)")
    expect(control(panel, "psnr-value")).to_have_text("30.00 dB")
    expect(control(panel, "ssim-value")).to_have_text("0.9000")
    dots = chart.locator("circle.cmp-dot")
    assert dots.count() == FRAMES - 1
    dots.nth(3).hover()
    expect_frame(panel, 4)
    page.mouse.move(0, 0)
    expect_frame(panel, 0)
    dots.nth(2).click(force=True)
    page.mouse.move(0, 0)
    expect_frame(panel, 3)
    chart.locator(".cmp-identical").click(force=True)
    expect_frame(panel, 1)
    expect(control(panel, "psnr-value")).to_have_text("identical")


def test_preview_replaces_the_clips_without_flicker(open_page):
    page = open_page(motion=True)
    panel = send(page, "starting")
    expect(control(panel, "preview-image")).to_be_hidden()
    panel = send(page, "preview")
    np.testing.assert_array_equal(pixels(panel, "preview-image"), PREVIEW)
    expect(control(panel, "stage")).to_be_hidden()
    control(panel, "preview-image").evaluate("canvas => { window.sameCanvas = canvas; }")
    send(page, "later")
    np.testing.assert_array_equal(pixels(panel, "preview-image"), 255 - PREVIEW)
    assert control(panel, "preview-image").evaluate("canvas => canvas === window.sameCanvas")
    send(page, "clips")
    expect(control(panel, "preview")).to_be_hidden()
    expect(control(panel, "reference")).to_be_visible()
    tall = panel.bounding_box()["height"]
    send(page, "preview")
    expect(panel).to_have_attribute("data-playing", "false")
    assert abs(panel.bounding_box()["height"] - tall) < 4


def test_comparators_on_one_page_do_not_meet(open_page):
    page = open_page()
    panel = send(page, "clips")
    second = page.locator("#second").get_by_test_id("comparator")
    control(second, "next").click()
    expect_frame(second, 1, frames=3)
    control(second, "mode-wipe").click()
    expect_frame(panel, 0)
    expect(panel).to_have_attribute("data-mode", "side")
    np.testing.assert_array_equal(pixels(second, "reference"), REFERENCE[3])
    np.testing.assert_array_equal(pixels(panel, "reference"), REFERENCE[0])


def test_hidden_panel_stops_and_resumes(open_page):
    panel = send(open_page(motion=True), "clips")
    expect(panel).not_to_have_attribute("data-frame", "0")
    panel.evaluate("node => { node.parentElement.style.display = 'none'; }")
    panel.page.wait_for_timeout(200)
    stopped_at = panel.get_attribute("data-frame")
    panel.page.wait_for_timeout(300)
    assert panel.get_attribute("data-frame") == stopped_at
    panel.evaluate("node => { node.parentElement.style.display = ''; }")
    expect(panel).not_to_have_attribute("data-frame", stopped_at)


def test_removed_panel_stops_and_lets_go_of_its_pictures(open_page):
    page = open_page(motion=True)
    send(page, "clips")
    page.evaluate("window.removed = document.querySelector('#first .cmp')")
    page.locator("#send-hide").click()
    expect(page.locator("#first .cmp")).to_have_count(0)
    page.wait_for_function("removed.dataset.playing === 'false'")
    stopped_at = page.evaluate("removed.dataset.frame")
    page.evaluate("removed.querySelector('[data-testid=comparator-next]').click()")
    assert page.evaluate("removed.dataset.frame") == stopped_at, "it still holds its frames"
    page.locator("#send-unhide").click()
    expect(first_panel(page)).to_have_attribute("data-state", "ready")
    expect(first_panel(page)).not_to_have_attribute("data-frame", "0")


def test_phone_layout_and_names_of_controls(open_page):
    page = open_page(viewport={"width": 390, "height": 844})
    panel = send(page, "clips")
    control(panel, "mode-difference").click()
    for button in panel.get_by_role("button").all():
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 36, button.get_attribute("data-testid")
        assert button.get_attribute("aria-label") or button.inner_text()
    assert control(panel, "scrub").bounding_box()["height"] >= 36
    control(panel, "mode-side").click()
    left, right = (control(panel, side).bounding_box() for side in ("reference", "quantized"))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
