"""How the app looks: Gradio's theme with system fonts, and the house style sheet."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

STYLE = Path(__file__).parents[1] / "assets" / "ui" / "studio.css"

_FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> gr.themes.Base:
    """Indigo on slate. System fonts, so that nothing is fetched and text is there at once."""
    return gr.themes.Soft(
        primary_hue="indigo",
        secondary_hue="indigo",
        neutral_hue="slate",
        radius_size="md",
        font=_FONT,
        font_mono=_MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_title_text_weight="500",
        block_title_padding="0",
        block_border_width="1px",
        input_border_width="1px",
        # Soft's own are all but white on white: an empty box must be seen to be ticked, a hint to be read.
        input_border_color="*neutral_300",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
        input_shadow="none",
        input_shadow_dark="none",
        button_primary_shadow="none",
        button_secondary_shadow="none",
        block_shadow="none",
        block_shadow_dark="none",
    )
