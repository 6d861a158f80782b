"""Text fits the room it is given, in letters that the font has."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from introspection.pictures.lettering import plain, text_width, wrapped, write

LONG = "a photograph of several golden retrievers, seen from afar"


@pytest.mark.parametrize("text", [LONG, "W" * 500, "ab", "W", ""])
@pytest.mark.parametrize("room", [0, 5, 20, 90])
def test_a_line_keeps_to_its_room(text: str, room: int) -> None:
    picture = Image.new("L", (400, 40), 255)
    width = write(ImageDraw.Draw(picture), (10, 5), text, 14, "black", room)
    assert width <= room
    assert np.asarray(picture)[:, 10 + room + 2 :].min() == 255


def test_what_fits_is_written_whole() -> None:
    picture = Image.new("L", (500, 40), 255)
    assert write(ImageDraw.Draw(picture), (0, 5), LONG, 14, "black", 500) == round(text_width(LONG, 14))
    assert np.asarray(picture).min() < 100


def test_wrapping_keeps_every_word() -> None:
    lines = wrapped(LONG, 15, 120)
    assert len(lines) > 2
    assert " ".join(lines) == LONG
    assert all(text_width(line, 15) <= 120 for line in lines)


def test_text_keeps_to_the_letters_of_the_font() -> None:
    assert plain("crème  brûlée · F²\n… 犬\0") == "creme brulee · F2 ... ??"
