"""Every form of an answer to `/introspect` is one row: name, media type, suffix, description, writer.

The route chooses a row by `Accept`, the command line by a file's suffix. To add a form, add its writer and a
row here.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifact.errors import ParameterError
from artifact.manifest import Manifest, lens_blocks
from introspection.document import answer, to_json
from introspection.encoding import decode_codes
from introspection.pictures.block import block_picture
from introspection.pictures.sheet import contact_sheet, sheet_quantities
from introspection.quantities import GROUPS, why_absent
from introspection.question import Question
from introspection.seen import Seen
from introspection.steps import Steps, finish

MAX_PICTURES = 64  # of blocks: a fifth of a second each


def to_npz(seen: Seen, question: Question) -> bytes:
    """Return the same answer as arrays, for `numpy.load(file, allow_pickle=False)`.

    - `logits` float32 [K]; `gates` float32 [L] and `gate_names` [L], of the whole network
    - `block_names` [B], the blocks asked for; `scalars/<name>` float64 [B] (or [B, R] of a list), NaN where
      null
    - `maps/<block>/<quantity>` [H, W]: float32 with NaN where null (or float16, or u8 codes, as asked for);
      a map that does not exist is NaN in float32, whatever was asked for
    - `lens_logits` float32 [M, K] and `lens_blocks` [M], the names of the network's blocks that have a lens
    - `lesion_logits` float32 [B + 1, K]: nothing removed, then each of the blocks asked for
    - `metadata`: the JSON document as one string, its maps without `data`
    """
    return npz(with_arrays(seen, question)[1])


def with_arrays(seen: Seen, question: Question) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the JSON document, its maps without `data`, and the arrays of `to_npz`."""
    document = answer(seen, question, "f32")
    arrays = _arrays(seen, question)
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


def _arrays(seen: Seen, question: Question) -> dict[str, NDArray[Any]]:
    """Return what an NPZ holds beside maps and metadata."""
    values, blocks, chosen = seen.values, seen.manifest.blocks, list(question.blocks)
    names = np.array([block.name for block in blocks])
    arrays: dict[str, NDArray[Any]] = {
        "logits": values.logits_K.astype(np.float32),
        "gates": question.gates_L,
        "gate_names": names,
        "block_names": names[chosen],
    }
    for group in (GROUPS[name] for name in question.groups):
        measured = values.ranked if group.ranked else values.scalars
        for member in group.members if group.ranked else group.numbers:
            name = group.full_name(member)
            absent = name not in measured and why_absent(name, seen.manifest)
            values_L = np.full(len(names), np.nan) if absent else measured[name]
            arrays[f"scalars/{name}"] = values_L[chosen]
    if "lens" in question.groups and values.lens_MK is not None:
        arrays["lens_logits"] = values.lens_MK.astype(np.float32)
        arrays["lens_blocks"] = names[lens_blocks(blocks)]
    if values.lesions is not None:
        arrays["lesion_logits"] = values.lesions.logits
    return arrays


def to_png(seen: Seen, question: Question) -> Steps[bytes]:
    """Draw a contact sheet, or the picture of a block if only one is asked for.

    Raises:
        ParameterError: see `sheet_quantities`.
    """
    if len(question.blocks) == 1:
        return (yield from block_picture(seen, question, question.blocks[0]))
    return (yield from contact_sheet(seen, question))


def to_zip(seen: Seen, question: Question) -> Steps[bytes]:
    """Write `introspection.json` (maps without data), `.npz`, `sheet.png`, and `blocks/NAME.png`.

    Raises:
        ParameterError: see `sheet_quantities`, or there are too many blocks.
    """
    _check_pictures(question)
    document, arrays = with_arrays(seen, question)
    file = io.BytesIO()
    # Arrays and pictures are stored: PNG is compressed, and deflating arrays would save a tenth of them.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("introspection.json", to_json(document), zipfile.ZIP_DEFLATED)
        archive.writestr("introspection.npz", npz(arrays))
        archive.writestr("sheet.png", (yield from contact_sheet(seen, question)))
        for index in question.blocks:
            picture = yield from block_picture(seen, question, index)
            archive.writestr(f"blocks/{seen.manifest.blocks[index].name}.png", picture)
    return file.getvalue()


def _as_asked(question: Question, manifest: Manifest) -> Question:
    return question


def _shown_in_png(question: Question, manifest: Manifest) -> Question:
    maps = sheet_quantities(question, manifest)
    if len(question.blocks) == 1:
        return question
    return replace(question, maps=maps, groups=(), complete=False)


def _shown_in_zip(question: Question, manifest: Manifest) -> Question:
    _check_pictures(question)
    sheet_quantities(question, manifest)
    return question


def _check_pictures(question: Question) -> None:
    """Raise ParameterError if a ZIP would have pictures of too many blocks."""
    if len(question.blocks) > MAX_PICTURES:
        raise ParameterError(
            "blocks",
            f"blocks: a ZIP has a picture of each block, of at most {MAX_PICTURES}, and these are "
            f"{len(question.blocks):,}.",
            "Name fewer in blocks=.",
        )


def _at_once(write: Callable[[Seen, Question], bytes]) -> Callable[[Seen, Question], Steps[bytes]]:
    def steps(seen: Seen, question: Question) -> Steps[bytes]:
        yield
        return write(seen, question)

    return steps


@dataclass(frozen=True)
class Form:
    """A form of the answer.

    Attributes:
        suffix: of files that hold it.
        description: for OpenAPI and the command line; empty for JSON, which OpenAPI describes by its schema.
        steps: the writer.
        shown: the part of a question that such an answer holds; raises ParameterError if it cannot be drawn.
        with_pictures: it needs the photograph, and takes long.
    """

    name: str
    media_type: str
    suffix: str
    description: str
    steps: Callable[[Seen, Question], Steps[bytes]]
    shown: Callable[[Question, Manifest], Question] = _as_asked
    with_pictures: bool = False

    def written(self, seen: Seen, question: Question) -> bytes:
        """Return the answer, written to its end."""
        return finish(self.steps(seen, question))


# In order of preference, for a client that accepts several.
JSON = Form(
    "json",
    "application/json",
    ".json",
    "",
    _at_once(lambda seen, question: to_json(answer(seen, question))),
)
_FORMS = (
    JSON,
    Form(
        "npz",
        "application/x-npz",
        ".npz",
        "arrays for `numpy.load`, and the JSON as `metadata`",
        _at_once(to_npz),
    ),
    Form(
        "png",
        "image/png",
        ".png",
        "a contact sheet: the blocks over the photograph; all maps of one block",
        to_png,
        _shown_in_png,
        with_pictures=True,
    ),
    Form(
        "zip",
        "application/zip",
        ".zip",
        "JSON, NPZ, and all pictures as PNG",
        to_zip,
        _shown_in_zip,
        with_pictures=True,
    ),
)
FORMS: dict[str, Form] = {form.media_type: form for form in _FORMS}
BY_SUFFIX: dict[str, Form] = {form.suffix: form for form in _FORMS}
