"""Pictures of text, rendered with the scalable font that Pillow carries. Not here: what a model wants of a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are outside."""

WORDS = (
    "amber", "basin", "cedar", "delta", "ember", "fabric", "garden", "harbor", "island", "jacket", "kernel", "lantern",
    "market", "number", "orange", "parcel", "quartz", "river", "silver", "timber", "umbrella", "valley", "window",
    "yellow", "zephyr",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text as drawn: ``pixels`` u8[H,W] grey, ``box`` of the ink."""

    text: str
    pixels: Pixels
    box: Box


def draw_line(text: str, size: tuple[int, int], at: tuple[int, int], font_px: int, ink: int = 0) -> Line:
    """Draw ``text`` on a white picture of ``size`` (width, height), the ink's left top corner at ``at``."""
    font = ImageFont.load_default(size=font_px)
    picture = Image.new("L", size, 255)
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = (round(edge) for edge in pen.textbbox((0, 0), text, font=font))
    pen.text((at[0] - left, at[1] - top), text, font=font, fill=ink)
    return Line(text, np.asarray(picture), (at[0], at[1], at[0] + right - left, at[1] + bottom - top))


def draw_page(rng: np.random.Generator, side: int, font_px: int) -> Pixels:
    """u8[side,side] grey: a page of ragged lines of words, as a letter would have."""
    font = ImageFont.load_default(size=font_px)
    picture = Image.new("L", (side, side), 255)
    pen = ImageDraw.Draw(picture)
    margin, leading = side // 16, round(font_px * 1.5)
    for top in range(margin, side - margin - font_px, leading):
        line = ""
        for word in rng.choice(WORDS, 12):
            if pen.textlength(line + word, font=font) > side - 2 * margin:
                break
            line += f"{word} "
        pen.text((margin, top), line.capitalize(), font=font, fill=0)
    return np.asarray(picture)
