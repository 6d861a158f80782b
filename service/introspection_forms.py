"""The forms of an answer to `/introspect`: what each can show, and its bytes.

The route chooses one by `Accept`, the command line by a file's suffix. It knows neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from models.manifest import Manifest
from models.preprocess import Preprocessed
from service.block_picture import block_picture
from service.drawing import keep_on
from service.introspection import Quantities
from service.introspection_answer import Run, answer, to_json, to_npz
from service.introspection_query import Options
from service.introspection_zip import check_pictures, to_zip
from service.rendering import contact_sheet, sheet_quantities

Form = Literal["json", "npz", "png", "zip"]
WITH_PICTURES: tuple[Form, ...] = ("png", "zip")


def shown(form: Form, options: Options, manifest: Manifest) -> Options:
    """The part of what was asked for that such an answer holds: a contact sheet shows maps and nothing else.

    Raises:
        ParameterError: it cannot be drawn: no map is named, one that does not exist, or too many.
    """
    if form not in WITH_PICTURES:
        return options
    if form == "zip":
        check_pictures(options)
    maps = sheet_quantities(options, manifest)
    if form == "png" and len(options.blocks) > 1:
        return replace(options, maps=maps, groups=(), complete=False)
    return options


def written(
    form: Form,
    quantities: Quantities,
    manifest: Manifest,
    options: Options,
    image: Preprocessed,
    run: Run,
    check: Callable[[], None] = keep_on,
) -> bytes:
    """The answer; of a single block the PNG is a picture of that one.

    Args:
        check: called before each part of a picture; what it raises ends the drawing.

    Raises:
        ParameterError: as of `shown`.
    """
    if form == "png":
        if len(options.blocks) == 1:
            return block_picture(quantities, manifest, options, image, options.blocks[0], check)
        return contact_sheet(quantities, manifest, options, image, check)
    if form == "zip":
        return to_zip(quantities, manifest, options, image, run, check)
    if form == "npz":
        return to_npz(quantities, manifest, options, image, run)
    return to_json(answer(quantities, manifest, options, image, run))
