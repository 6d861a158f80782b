"""The forms of an answer to `/introspect`: what each can show, and its bytes.

The route chooses one by `Accept`, the command line by a file's suffix. It knows neither.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from artifact.manifest import Manifest, lens_blocks
from artifact.preprocess import Preprocessed
from introspection.document import answer, to_json
from introspection.encoding import decode_codes
from introspection.measure import Quantities
from introspection.pictures.block import block_picture
from introspection.pictures.parts import keep_on
from introspection.pictures.sheet import contact_sheet, sheet_quantities
from introspection.quantities import (
    scalar_names,
    why_absent,
)
from introspection.question import Options, ParameterError
from introspection.rows import Run


def to_npz(
    quantities: Quantities, manifest: Manifest, options: Options, image: Preprocessed, run: Run
) -> bytes:
    """The same answer as arrays, for `numpy.load(file, allow_pickle=False)`.

    - `logits` float32 [K]; `gates` float32 [L] and `gate_names` [L], of the whole network
    - `block_names` [B], the blocks asked for; `scalars/<name>` float64 [B], NaN where null
    - `maps/<block>/<quantity>` [H, W]: float32 with NaN where null (or float16, or u8 codes, as asked for);
      a map that does not exist is NaN in float32, whatever was asked for
    - `lens_logits` float32 [M, K] and `lens_blocks` [M], the names of the network's blocks that have a lens
    - `lesion_logits` float32 [B + 1, K]: nothing removed, then each of the blocks asked for
    - `metadata`: the JSON document as one string, its maps without `data`
    """
    return npz(with_arrays(quantities, manifest, options, image, run)[1])


def with_arrays(
    quantities: Quantities, manifest: Manifest, options: Options, image: Preprocessed, run: Run
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The JSON document, its maps without `data`, and the arrays of `to_npz`."""
    document = answer(quantities, manifest, options, image, run, "f32")
    arrays = _arrays(quantities, manifest, options)
    for block in document["blocks"]:
        for quantity, entry in block["maps"].items():
            array = np.full(block["shape"][1:], np.nan, np.float32) if entry is None else decode_codes(entry)
            arrays[f"maps/{block['name']}/{quantity}"] = array
            if entry is not None:
                del entry["data"]
    arrays["metadata"] = np.array(to_json(document).decode())
    return document, arrays


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _arrays(quantities: Quantities, manifest: Manifest, options: Options) -> dict[str, NDArray[Any]]:
    """What an NPZ holds beside maps and metadata."""
    chosen = list(options.blocks)
    names = np.array([block.name for block in manifest.blocks])
    arrays: dict[str, NDArray[Any]] = {
        "logits": quantities.logits_K.astype(np.float32),
        "gates": options.gates_L,
        "gate_names": names,
        "block_names": names[chosen],
    }
    for group in options.groups:
        for name in scalar_names(group):
            absent = name not in quantities.scalars and why_absent(name, manifest)
            values_L = np.full(len(names), np.nan) if absent else quantities.scalars[name]
            arrays[f"scalars/{name}"] = values_L[chosen]
    if "lens" in options.groups and quantities.lens_MK is not None:
        arrays["lens_logits"] = quantities.lens_MK.astype(np.float32)
        arrays["lens_blocks"] = names[lens_blocks(manifest.blocks)]
    if quantities.lesions is not None:
        arrays["lesion_logits"] = quantities.lesions.logits
    return arrays


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


JSON, NPZ, PNG, ZIP = "application/json", "application/x-npz", "image/png", "application/zip"
FORMS: dict[str, Form] = {JSON: "json", NPZ: "npz", PNG: "png", ZIP: "zip"}
OFFERED = tuple(FORMS)
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
