"""Text on a picture: cut or wrapped to the room there is, in the font that comes with Pillow."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from PIL import ImageDraw, ImageFont


def write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, fill: str, room: int
) -> int:
    """Write one line of text, cut with an ellipsis to `room` pixels; return the width it took."""
    shown = plain(text)
    while shown and text_width(shown, size) > room:
        shown = shown.removesuffix("…")[:-1].rstrip() + "…" if len(shown) > 1 else ""
    draw.text(place, shown, fill=fill, font=font_of(size))
    return round(text_width(shown, size))


def text_width(text: str, size: int) -> float:
    """Return the pixels that one line takes; `text` has only letters that `plain` leaves, and ellipses."""
    return font_of(size).getlength(text)


def wrapped(text: str, size: int, room: int) -> list[str]:
    """Break a text into lines of at most `room` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(plain(longer), size) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def plain(text: str) -> str:
    """Return a text in the letters of Pillow's built-in font: without accents, `?` for letters it lacks."""
    letters = unicodedata.normalize("NFKD", " ".join(text.split()))
    return "".join(
        letter if letter == "·" or (letter.isascii() and letter.isprintable()) else "?"
        for letter in letters
        if not unicodedata.combining(letter)
    )


@lru_cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
