"""The whole answer of `/introspect` in one ZIP: numbers, arrays and pictures."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

from models.manifest import Manifest
from models.preprocess import Preprocessed
from service.block_picture import block_picture
from service.drawing import keep_on
from service.introspection import Quantities
from service.introspection_answer import Run, npz, to_json, with_arrays
from service.introspection_query import Options, ParameterError
from service.rendering import contact_sheet

MAX_PICTURES = 64  # of blocks: a fifth of a second each


def to_zip(
    quantities: Quantities,
    manifest: Manifest,
    options: Options,
    image: Preprocessed,
    run: Run,
    check: Callable[[], None] = keep_on,
) -> bytes:
    """`introspection.json` (maps without data), `.npz`, `sheet.png`, `blocks/NAME.png` of those asked for.

    Args:
        check: called before each part of a picture; what it raises ends the drawing.

    Raises:
        ParameterError: as of `check_pictures` and `contact_sheet`.
    """
    check_pictures(options)
    document, arrays = with_arrays(quantities, manifest, options, image, run)
    file = io.BytesIO()
    # Arrays and pictures are stored: PNG is compressed, and the rest would be for a tenth of its size.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("introspection.json", to_json(document), zipfile.ZIP_DEFLATED)
        archive.writestr("introspection.npz", npz(arrays))
        archive.writestr("sheet.png", contact_sheet(quantities, manifest, options, image, check))
        for index in options.blocks:
            picture = block_picture(quantities, manifest, options, image, index, check)
            archive.writestr(f"blocks/{manifest.blocks[index].name}.png", picture)
    return file.getvalue()


def check_pictures(options: Options) -> None:
    """Raise ParameterError if they are of too many blocks."""
    if len(options.blocks) > MAX_PICTURES:
        raise ParameterError(
            "blocks",
            f"blocks: a ZIP has a picture of each block, of at most {MAX_PICTURES}, and these are "
            f"{len(options.blocks):,}.",
            "Name fewer in blocks=.",
        )
