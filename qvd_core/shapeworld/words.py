"""The words of the procedural world, without torch: what a caption can say."""

from __future__ import annotations

SHAPES = ("circle", "square", "triangle", "ring", "cross")
MOTIONS = ("moving left", "moving right", "moving up", "moving down", "growing", "shrinking")
TEXTURES = ("plain", "striped", "checkered")
OBJECT_COLOURS = {
    "red": (222, 44, 48),
    "orange": (247, 140, 26),
    "yellow": (248, 222, 62),
    "green": (44, 176, 72),
    "blue": (42, 96, 226),
    "purple": (148, 62, 204),
}
BACKGROUND_COLOURS = {
    "black": (26, 26, 34),
    "gray": (124, 126, 132),
    "white": (240, 240, 236),
    "pink": (246, 178, 202),
    "teal": (14, 104, 110),
}
"""Colours as sRGB, 0 to 255."""


def describe_words() -> str:
    """All words, for people who are about to write a caption."""
    return (
        "This small model knows only these words, in this order: a "
        + "/".join(OBJECT_COLOURS)
        + " "
        + "/".join(SHAPES)
        + ", "
        + ", ".join(MOTIONS)
        + ", on a "
        + "/".join(TEXTURES)
        + " "
        + "/".join(BACKGROUND_COLOURS)
        + " background."
    )
