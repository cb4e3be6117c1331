"""Draws the pictures of the demonstration clinic."""

import io
import random
from collections.abc import Callable

from PIL import Image as Canvas
from PIL import ImageDraw, ImageFilter

SIZE = (480, 360)


def _png(canvas: Canvas.Image) -> io.BytesIO:
    file = io.BytesIO()
    canvas.save(file, "PNG")
    file.seek(0)
    return file


def _draw_ecg(chance: random.Random) -> io.BytesIO:
    """Draw an ECG: three leads on squared paper."""
    canvas = Canvas.new("RGB", SIZE, "#fff6f4")
    pen = ImageDraw.Draw(canvas)
    for x in range(0, SIZE[0], 12):
        pen.line((x, 0, x, SIZE[1]), fill="#f3c6c0" if x % 60 else "#e39a92")
    for y in range(0, SIZE[1], 12):
        pen.line((0, y, SIZE[0], y), fill="#f3c6c0" if y % 60 else "#e39a92")
    beat = chance.randrange(60, 110)
    wave = {
        8: -6,
        12: -8,
        16: 0,
        24: 4,
        27: -60,
        31: 18,
        34: 0,
        44: -4,
        50: -14,
        58: 0,
    }  # P, QRS, T: pixels from the line
    for lead in range(3):
        middle, height = 70 + lead * 110, chance.uniform(0.6, 1.1)
        points = [
            (start + x, middle + y * height + chance.uniform(-1, 1))
            for start in range(-beat, SIZE[0] + beat, beat)
            for x, y in wave.items()
        ]
        pen.line(points, fill="#26324a", width=2)
    return _png(canvas)


def _draw_chest(chance: random.Random) -> io.BytesIO:
    """Draw something like a chest X-ray."""
    canvas = Canvas.new("L", SIZE, 18)
    pen = ImageDraw.Draw(canvas)
    tilt = chance.randrange(-12, 12)
    pen.rounded_rectangle((90, 20, 390, 380), 90, fill=120)
    for side in (-1, 1):
        centre = 240 + side * 72 + tilt
        pen.ellipse((centre - 58, 60, centre + 58, 310), fill=42)
        for rib in range(7):
            top = 70 + rib * 32
            pen.arc((centre - 90, top, centre + 90, top + 70), 200, 340, fill=96, width=7)
    pen.rounded_rectangle((226 + tilt, 20, 254 + tilt, 360), 10, fill=170)
    pen.ellipse((215 + tilt, 170, 330 + tilt, 300), fill=150)
    if chance.random() < 0.4:  # a shadow
        x, y = chance.randrange(140, 330), chance.randrange(110, 260)
        pen.ellipse((x, y, x + 46, y + 34), fill=150)
    return _png(canvas.filter(ImageFilter.GaussianBlur(5)))


def _draw_ultrasound(chance: random.Random) -> io.BytesIO:
    """Draw something like an ultrasound: a sector of speckle with a dark cavity."""
    speckle = Canvas.frombytes("L", (120, 90), chance.randbytes(120 * 90)).resize(SIZE, Canvas.Resampling.BICUBIC)
    sector = Canvas.new("L", SIZE, 0)
    pen = ImageDraw.Draw(sector)
    pen.pieslice((-80, -330, 560, 350), 50, 130, fill=130)
    x, y = chance.randrange(180, 260), chance.randrange(150, 220)
    pen.ellipse((x - 50, y - 30, x + 60, y + 40), fill=25)
    sector = sector.filter(ImageFilter.GaussianBlur(4))
    return _png(Canvas.composite(speckle, Canvas.new("L", SIZE, 0), sector))


PICTURES: tuple[tuple[str, Callable[[random.Random], io.BytesIO]], ...] = (
    ("ECG", _draw_ecg),
    ("Chest X-ray", _draw_chest),
    ("Ultrasound", _draw_ultrasound),
)
