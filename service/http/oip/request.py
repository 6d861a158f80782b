"""Parse and check an inference request.

A body is a JSON object, with its tensor inside or, as bytes, after it. If the JSON's length is given as 0,
the body is one image file. A sender's mistake raises InvalidInference, and a body that is too long
TooManyBytes. This module knows what a model takes, one tensor of images, and nothing of HTTP.

Shapes: N images, S x S pixels (the model's crop).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInference
from service.http.oip.records import InferRequest, Input, Output, parse_json

PIXELS = "images"  # the input as the graph has it: UINT8 [N, S, S, 3]
FILES = ("images", "image")  # as image files: BYTES [N]
LOGITS = "logits"  # the output: FP32 [N, K]

HOW_TO_SEND = f"Send {PIXELS!r} as UINT8 pixels, or as BYTES that are image files."
NO_IMAGE = "There is no image in the request."


@dataclass(frozen=True, eq=False)
class Inference:
    """An inference request, checked."""

    images: list[bytes] | NDArray[np.uint8]  # files, or pixels [N, S, S, 3]
    id: str | None = None
    timeout_ms: int | None = None
    num_classes: int | None = None  # answer with that many best classes instead of all logits
    binary: bool = True  # the output follows the JSON as bytes


def parse_inference(body: bytes, header_length: str | None, size: int, max_images: int) -> Inference:
    """Return the request in `body`, for a model of `size` x `size` pixels.

    Pixels that follow the JSON are not copied.

    Args:
        header_length: the sender's number of JSON bytes; None: the whole body; "0": the body is a file.

    Raises:
        InvalidInference, TooManyBytes: see the module.
    """
    if header_length is None:
        num_json_bytes = len(body)
    elif header_length.isascii() and header_length.isdecimal() and len(header_length) < 16:
        num_json_bytes = int(header_length)
        if num_json_bytes == 0:
            if not body:
                raise InvalidInference(NO_IMAGE, HOW_TO_SEND)
            return Inference([body])
        if num_json_bytes > len(body):
            raise InvalidInference(
                f"Inference-Header-Content-Length is {num_json_bytes}, but the body has {len(body)} bytes.",
                "It counts the bytes of the JSON before any compression.",
            )
    else:
        raise InvalidInference(
            "Inference-Header-Content-Length must be the number of bytes of the JSON at the body's start."
        )
    request = parse_json(body[:num_json_bytes], InferRequest)
    tensor = _only_input(request)
    payload = _payload(tensor, memoryview(body)[num_json_bytes:])
    output = _only_output(request)
    binary = output.parameters.binary_data
    return Inference(
        _images(tensor, payload, size, max_images),
        request.id,
        -(-request.parameters.timeout // 1000) or None,
        output.parameters.classification,
        request.parameters.binary_data_output if binary is None else binary,
    )


def _only_input(request: InferRequest) -> Input:
    if len(request.inputs) != 1:
        raise InvalidInference(
            f"There must be one input; this request has {len(request.inputs)}.", HOW_TO_SEND
        )
    tensor = request.inputs[0]
    if tensor.parameters.shared_memory_region is not None:
        raise InvalidInference(f"Input {tensor.name!r}: there is no shared memory here.", HOW_TO_SEND)
    return tensor


def _only_output(request: InferRequest) -> Output:
    if not request.outputs:
        return Output(name=LOGITS)
    output = request.outputs[0]
    for other in request.outputs:
        if other.name != LOGITS:
            raise InvalidInference(f"There is no output {other.name!r}.", f"There is: {LOGITS!r}.")
    if len(request.outputs) > 1:
        raise InvalidInference(f"Output {LOGITS!r} is asked for {len(request.outputs)} times.")
    if output.parameters.shared_memory_region is not None:
        raise InvalidInference(f"Output {output.name!r}: there is no shared memory here.")
    return output


def _payload(tensor: Input, tail: memoryview) -> memoryview | list[Any]:
    """Return the tensor's elements: the bytes after the JSON, or the list in its `data`."""
    num_bytes = tensor.parameters.binary_data_size
    if num_bytes is None:
        if len(tail):
            raise InvalidInference(f"{len(tail)} bytes follow the JSON, but no input has a binary_data_size.")
        if not isinstance(tensor.data, list):
            raise InvalidInference(f"Input {tensor.name!r} needs `data`, a list, or a binary_data_size.")
        return tensor.data
    if tensor.data is not None:
        raise InvalidInference(f"Input {tensor.name!r} has both `data` and a binary_data_size.")
    if num_bytes != len(tail):
        raise InvalidInference(
            f"Input {tensor.name!r}: binary_data_size is {num_bytes}, but {len(tail)} bytes follow the JSON.",
            "Inference-Header-Content-Length must be the length of the JSON.",
        )
    return tail


def _images(
    tensor: Input, payload: memoryview | list[Any], size: int, max_images: int
) -> list[bytes] | NDArray[np.uint8]:
    if tensor.datatype == "UINT8" and tensor.name == PIXELS:
        _check_shape(tensor, [[size, size, 3]], max_images)
        return _pixels(tensor, payload)
    if tensor.datatype == "BYTES" and tensor.name in FILES:
        _check_shape(tensor, [[], [1]], max_images)
        return _files(tensor, payload)
    if tensor.name not in FILES:
        raise InvalidInference(f"There is no input {tensor.name!r}.", HOW_TO_SEND)
    raise InvalidInference(
        f"Input {tensor.name!r} cannot be {tensor.datatype}.",
        f"{HOW_TO_SEND} The graph normalises pixels itself.",
    )


def _check_shape(tensor: Input, row_shapes: list[list[int]], max_images: int) -> None:
    if tensor.shape[1:] not in row_shapes or not tensor.shape:
        allowed = " or ".join(str(["N", *shape]).replace("'", "") for shape in row_shapes)
        raise InvalidInference(
            f"Input {tensor.name!r} has the shape {tensor.shape}; as {tensor.datatype} it must be {allowed}."
        )
    if tensor.shape[0] < 1:
        raise InvalidInference(NO_IMAGE, HOW_TO_SEND)
    if tensor.shape[0] > max_images:
        raise InvalidInference(
            f"A request may have {max_images} images at most; this one has {tensor.shape[0]}."
        )


def _pixels(tensor: Input, payload: memoryview | list[Any]) -> NDArray[np.uint8]:
    if isinstance(payload, list):
        values = _flat(payload, tensor.shape)
        numbers = set(map(type, values)) <= {int}
        if not numbers or min(values, default=0) < 0 or max(values, default=0) > 255:
            raise InvalidInference(f"Input {tensor.name!r}: `data` must be whole numbers from 0 to 255.")
        payload = memoryview(bytes(values))
    _check_count(tensor, len(payload))
    return np.frombuffer(payload, np.uint8).reshape(tensor.shape)


def _files(tensor: Input, payload: memoryview | list[Any]) -> list[bytes]:
    if isinstance(payload, list):
        texts = _flat(payload, tensor.shape)
        if not set(map(type, texts)) <= {str}:
            raise InvalidInference(
                f"Input {tensor.name!r}: `data` must be texts.", "Send files as binary data."
            )
        files = [text.encode() for text in texts]
    else:
        files = list(islice(elements(payload), tensor.shape[0] + 1))  # a body may hold millions
    _check_count(tensor, len(files))
    return files


def _check_count(tensor: Input, num_elements: int) -> None:
    if num_elements != prod(tensor.shape):
        raise InvalidInference(
            f"Input {tensor.name!r} has {num_elements} elements; by its shape it has {prod(tensor.shape)}."
        )


def _flat(data: list[Any], shape: list[int]) -> list[Any]:
    """Return the elements of nested lists of a shape, in order; a flat list is returned as it is."""
    for length in shape[1:]:
        if not data or set(map(type, data)) != {list}:
            break
        if set(map(len, data)) != {length}:
            raise InvalidInference(f"`data` is nested otherwise than its shape {shape} says.")
        data = list(chain.from_iterable(data))
    return data


def elements(payload: memoryview) -> Iterator[bytes]:
    """Yield the elements of a BYTES tensor; each is preceded by its length in 4 bytes, little-endian.

    Raises:
        InvalidInference: an element ends after the tensor.
    """
    at = 0
    while at < len(payload):
        start = at + 4
        at = start + int.from_bytes(payload[at:start], "little")
        if start > len(payload) or at > len(payload):
            raise InvalidInference(
                "A BYTES element ends after its tensor.",
                "Each element has its length before it: 4 bytes, little-endian.",
            )
        yield bytes(payload[start:at])
