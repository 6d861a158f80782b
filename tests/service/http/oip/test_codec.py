"""Bodies of the Open Inference Protocol: what tritonclient writes is read, what it reads is written, and no
body, however wrong, raises anything but a problem that says what is wrong with it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.types import Message
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import deserialize_bytes_tensor

from artifact.errors import ResiduumError
from artifact.manifest import Label, Manifest
from service.errors import InvalidInference, TooManyBytes, UnsupportedMediaType
from service.http.oip.body import read_body
from service.http.oip.records import MAX_JSON_BYTES
from service.http.oip.request import Inference, elements, parse_inference
from service.http.oip.response import build_answer, bytes_tensor, compress, wanted_encoding
from service.settings import Settings

SIZE = 4  # of the images
MAX_IMAGES = 3
SETTINGS = Settings()

fuzzed = settings(max_examples=300, derandomize=True, deadline=None)


def parse(body: bytes, header_length: int | str | None = None) -> Inference:
    return parse_inference(body, None if header_length is None else str(header_length), SIZE, MAX_IMAGES)


def pixels_of(num_images: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (num_images, SIZE, SIZE, 3), np.uint8)


def written(array: NDArray[Any], kind: str, name: str = "images", binary: bool = True, **more: Any) -> Any:
    """Body and header length, as tritonclient sends them."""
    tensor = InferInput(name, list(array.shape), kind)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferenceServerClient.generate_request_body([tensor], **more)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("num_images", [1, MAX_IMAGES])
def test_pixels_come_as_tritonclient_wrote_them(binary: bool, num_images: int) -> None:
    pixels = pixels_of(num_images)
    images = parse(*written(pixels, "UINT8", binary=binary)).images
    assert isinstance(images, np.ndarray)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, pixels)


def test_binary_pixels_are_not_copied() -> None:
    body, header_length = written(pixels_of(2), "UINT8")
    images = parse(body, header_length).images
    assert np.shares_memory(np.asarray(images), np.frombuffer(body, np.uint8))


def test_pixels_may_be_nested_like_their_shape() -> None:
    pixels = pixels_of(2)
    for data in (pixels.tolist(), pixels.reshape(2, -1, 3).ravel().tolist()):
        tensor = {"name": "images", "datatype": "UINT8", "shape": list(pixels.shape), "data": data}
        images = parse(json.dumps({"inputs": [tensor]}).encode()).images
        np.testing.assert_array_equal(np.asarray(images), pixels)


@fuzzed
@given(
    files=st.lists(st.binary(max_size=60), min_size=1, max_size=MAX_IMAGES),
    name=st.sampled_from(["images", "image"]),
    column=st.booleans(),
)
def test_files_come_as_tritonclient_wrote_them(files: list[bytes], name: str, column: bool) -> None:
    array = np.empty((len(files), 1) if column else len(files), np.object_)
    array[:] = [[file] for file in files] if column else files
    assert parse(*written(array, "BYTES", name)).images == files


def test_texts_in_json_are_their_utf8_bytes() -> None:
    array = np.array(["grüße".encode(), b"b"], np.object_)
    assert parse(*written(array, "BYTES", binary=False)).images == ["grüße".encode(), b"b"]


@fuzzed
@given(st.lists(st.binary(max_size=300), max_size=20))
def test_bytes_tensors_are_those_of_tritonclient(values: list[bytes]) -> None:
    payload = bytes_tensor(values)
    assert list(elements(memoryview(payload))) == values
    assert deserialize_bytes_tensor(payload).tolist() == values


@pytest.mark.parametrize("value", [7, None, ["a", "b"], {}])
def test_other_values_in_json_are_no_files(value: Any) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [2], "data": ["a", value]}
    with pytest.raises(InvalidInference, match="'image': `data` must be texts"):
        parse(json.dumps({"inputs": [tensor]}).encode())


def test_a_body_without_json_is_one_file() -> None:
    inference = parse(b"\xff\xd8 anything", 0)
    assert (inference.images, inference.binary, inference.num_classes) == ([b"\xff\xd8 anything"], True, None)


def test_what_is_asked_for() -> None:
    pixels = pixels_of(1)
    default = parse(*written(pixels, "UINT8"))
    assert (default.id, default.timeout_ms, default.num_classes, default.binary) == (None, None, None, True)
    outputs = [InferRequestedOutput("logits", binary_data=False, class_count=3)]
    asked = parse(
        *written(
            pixels,
            "UINT8",
            request_id="seven",
            outputs=outputs,
            timeout=1_500_001,
            priority=1,
            sequence_id=9,
            parameters={"colour": "blue"},
        )
    )
    assert (asked.id, asked.timeout_ms, asked.num_classes, asked.binary) == ("seven", 1501, 3, False)


@pytest.mark.parametrize(
    ("of_request", "of_output", "binary"),
    [
        ({}, {}, False),
        ({"binary_data_output": True}, {}, True),
        ({}, {"binary_data": True}, True),
        ({"binary_data_output": True}, {"binary_data": False}, False),
    ],
)
def test_an_output_decides_before_the_request(
    of_request: dict[str, bool], of_output: dict[str, bool], binary: bool
) -> None:
    document = valid()
    document["parameters"] = of_request
    document["outputs"] = [{"name": "logits", "parameters": of_output}]
    assert parse(json.dumps(document).encode()).binary is binary


def valid() -> dict[str, Any]:
    """A request whose pixels are in its JSON."""
    pixels = pixels_of(1)
    tensor = {
        "name": "images",
        "datatype": "UINT8",
        "shape": [1, SIZE, SIZE, 3],
        "data": pixels.ravel().tolist(),
    }
    return {"inputs": [tensor]}


def changed(path: str, value: Any) -> dict[str, Any]:
    """`valid()` with another value there: `inputs.0.name`; the value `...` takes the member away."""
    document: Any = valid()
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    at = document
    for part in parents:
        at = at.setdefault(part, {}) if isinstance(at, dict) else at[part]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return dict(document)


TENSOR = valid()["inputs"][0]
NUM_VALUES = SIZE * SIZE * 3


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("inputs", ..., "inputs: field required"),
        ("inputs", [], "one input; this request has 0"),
        ("inputs", [TENSOR, TENSOR], "one input; this request has 2"),
        ("inputs", [TENSOR] * 17, "inputs: list should have at most 16"),
        ("inputs", [3], "inputs.0: input should be an object"),
        ("inputs.0.name", "input_1", "There is no input 'input_1'"),
        ("inputs.0.name", "image", "'image' cannot be UINT8"),
        ("inputs.0.name", ..., "inputs.0.name: field required"),
        ("inputs.0.name", "a" * 257, "inputs.0.name: string should have at most 256"),
        ("inputs.0.datatype", "FP32", "'images' cannot be FP32"),
        ("inputs.0.datatype", 8, "inputs.0.datatype: input should be a valid string"),
        ("inputs.0.shape", [1, 3, SIZE, SIZE], "the shape [1, 3, 4, 4]; as UINT8 it must be [N, 4, 4, 3]"),
        ("inputs.0.shape", [SIZE, SIZE, 3], "it must be [N, 4, 4, 3]"),
        ("inputs.0.shape", [], "it must be [N, 4, 4, 3]"),
        ("inputs.0.shape", [True, SIZE, SIZE, 3], "inputs.0.shape.0: input should be a valid integer"),
        ("inputs.0.shape", [1.0, SIZE, SIZE, 3], "inputs.0.shape.0: input should be a valid integer"),
        ("inputs.0.shape", ["a"] * 1000, "inputs.0.shape: list should have at most 16 items"),
        ("inputs.0.shape", [0, SIZE, SIZE, 3], "There is no image in the request"),
        ("inputs.0.shape", [-1, SIZE, SIZE, 3], "There is no image in the request"),
        ("inputs.0.shape", [2, SIZE, SIZE, 3], "has 48 elements; by its shape it has 96"),
        ("inputs.0.shape", [4, SIZE, SIZE, 3], "3 images at most; this one has 4"),
        ("inputs.0.shape", [10**4299, SIZE, SIZE, 3], "3 images at most"),
        ("inputs.0.shape", [1, SIZE, SIZE, -(10**4299)], "it must be [N, 4, 4, 3]"),
        ("inputs.0.data", ..., "needs `data`, a list, or a binary_data_size"),
        ("inputs.0.data", None, "needs `data`, a list, or a binary_data_size"),
        ("inputs.0.data", "AAAA", "needs `data`, a list, or a binary_data_size"),
        ("inputs.0.data", {}, "needs `data`, a list, or a binary_data_size"),
        ("inputs.0.data", [], "has 0 elements; by its shape it has 48"),
        ("inputs.0.data", [256] * NUM_VALUES, "whole numbers from 0 to 255"),
        ("inputs.0.data", [-1] * NUM_VALUES, "whole numbers from 0 to 255"),
        ("inputs.0.data", [1.0] * NUM_VALUES, "whole numbers from 0 to 255"),
        ("inputs.0.data", [10**40] * NUM_VALUES, "whole numbers from 0 to 255"),
        ("inputs.0.data", [True] * NUM_VALUES, "whole numbers from 0 to 255"),
        ("inputs.0.data", ["1"] * NUM_VALUES, "whole numbers from 0 to 255"),
        ("inputs.0.data", [None] * NUM_VALUES, "whole numbers from 0 to 255"),
        ("inputs.0.data", [[1] * 24] * 2, "nested otherwise than its shape"),
        ("inputs.0.data", [[1] * 48], "nested otherwise than its shape"),
        ("inputs.0.data", [[[[[1]] * 3] * 4] * 4], "whole numbers from 0 to 255"),
        ("inputs.0.parameters", [], "inputs.0.parameters: input should be an object"),
        ("inputs.0.parameters.binary_data_size", 48, "both `data` and a binary_data_size"),
        (
            "inputs.0.parameters.binary_data_size",
            -1,
            "binary_data_size: input should be greater than or equal to 0",
        ),
        ("inputs.0.parameters.binary_data_size", "48", "binary_data_size: input should be a valid integer"),
        ("inputs.0.parameters.shared_memory_region", "mine", "no shared memory here"),
        ("outputs", [{"name": "prob"}], "There is no output 'prob'. There is: 'logits'."),
        ("outputs", [{"name": "logits"}, {"name": "prob"}], "There is no output 'prob'"),
        ("outputs", [{"name": "logits"}] * 2, "'logits' is asked for 2 times"),
        ("outputs", [{"name": "logits"}] * 17, "outputs: list should have at most 16"),
        ("outputs", {"name": "logits"}, "outputs: input should be a valid list"),
        (
            "outputs",
            [{"name": "logits", "parameters": {"shared_memory_region": "a"}}],
            "no shared memory here",
        ),
        (
            "outputs",
            [{"name": "logits", "parameters": {"classification": 0}}],
            "classification: input should be",
        ),
        (
            "outputs",
            [{"name": "logits", "parameters": {"classification": True}}],
            "classification: input should be",
        ),
        ("outputs", [{"name": "logits", "parameters": {"binary_data": 1}}], "binary_data: input should be"),
        ("parameters.timeout", -1, "parameters.timeout: input should be greater than or equal to 0"),
        ("parameters.timeout", "fast", "parameters.timeout: input should be a valid integer"),
        ("parameters.priority", 1.5, "parameters.priority: input should be a valid integer"),
        ("parameters.binary_data_output", "yes", "binary_data_output: input should be a valid boolean"),
        ("id", 7, "id: input should be a valid string"),
    ],
)
def test_what_is_wrong_is_said(path: str, value: Any, told: str) -> None:
    with pytest.raises(InvalidInference) as problem:
        parse(json.dumps(changed(path, value)).encode())
    assert told in f"{problem.value.detail} {problem.value.hint}"


PIXELS, HEADER = (lambda body, length: (body[length:], body[:length]))(*written(pixels_of(1), "UINT8"))
FILE_HEADER = json.dumps(
    {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 8}}]}
).encode()


@pytest.mark.parametrize(
    ("body", "header_length", "told"),
    [
        (b"", None, "JSON cannot be read"),
        (b"", 0, "There is no image in the request"),
        (b"{", None, "JSON cannot be read"),
        (b"[]", None, "the body: input should be an object"),
        (b'{"inputs": "\xff"}', None, "JSON cannot be read"),
        (b'{"id": "\\ud800", "inputs": []}', None, "JSON cannot be read"),
        (b"[" * 100_000, None, "JSON cannot be read"),
        (b"9" * 10_000, None, "JSON cannot be read"),
        (HEADER + PIXELS, None, "JSON cannot be read"),
        (HEADER + PIXELS, len(HEADER) - 1, "JSON cannot be read"),
        (HEADER + PIXELS, len(HEADER) + 1, "JSON cannot be read"),
        (HEADER + PIXELS, len(HEADER) + 49, "Inference-Header-Content-Length is"),
        (HEADER + PIXELS, "-1", "must be the number of bytes"),
        (HEADER + PIXELS, "0x10", "must be the number of bytes"),
        (HEADER + PIXELS, "²", "must be the number of bytes"),
        (HEADER + PIXELS, "9" * 5000, "must be the number of bytes"),
        (HEADER + PIXELS, "", "must be the number of bytes"),
        (HEADER + PIXELS[:-1], len(HEADER), "binary_data_size is 48, but 47 bytes follow"),
        (HEADER + PIXELS + b"x", len(HEADER), "binary_data_size is 48, but 49 bytes follow"),
        (HEADER, None, "binary_data_size is 48, but 0 bytes follow"),
        (
            json.dumps(valid()).encode() + b"x",
            len(json.dumps(valid())),
            "1 bytes follow the JSON, but no input",
        ),
        (FILE_HEADER + struct.pack("<II", 0, 1), len(FILE_HEADER), "ends after its tensor"),
        (FILE_HEADER + struct.pack("<II", 4, 0), len(FILE_HEADER), "has 1 elements; by its shape it has 2"),
        (FILE_HEADER + b"\x01\0\0\0" + b"abcd", len(FILE_HEADER), "ends after its tensor"),
        (FILE_HEADER + b"\xff" * 8, len(FILE_HEADER), "ends after its tensor"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(body: bytes, header_length: int | str | None, told: str) -> None:
    with pytest.raises(InvalidInference) as problem:
        parse(body, header_length)
    assert told in f"{problem.value.detail} {problem.value.hint}"


def test_millions_of_empty_elements_are_not_read() -> None:
    """They would be, one by one, if the shape were not looked at: with 16 million that takes seconds."""
    read = 0

    class Counted(bytes):
        def __getitem__(self, key: Any) -> Any:
            nonlocal read
            read += 1
            return super().__getitem__(key)

    for _ in zip(elements(Counted(bytes(4000))), range(MAX_IMAGES), strict=False):  # type: ignore[arg-type]
        pass
    assert read < 10 * MAX_IMAGES
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 4000}}
    header = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(InvalidInference, match="has 2 elements; by its shape it has 1"):
        parse(header + bytes(4000), len(header))


def test_long_json_is_refused_before_it_is_read() -> None:
    with pytest.raises(TooManyBytes, match="JSON of a request may have 4,194,304 bytes"):
        parse(b"{" * (MAX_JSON_BYTES + 1))
    for worst in (b"[],", b"{},", b"[" * 150 + b"]" * 150 + b","):
        with pytest.raises(InvalidInference, match="more than 524,288 lists"):
            parse((worst * MAX_JSON_BYTES)[:MAX_JSON_BYTES])


@fuzzed
@given(seed=st.integers(0, 10**9), kind=st.sampled_from(["pixels", "files", "json"]))
def test_a_damaged_body_is_read_or_refused(seed: int, kind: str) -> None:
    rng = random.Random(seed)
    files = np.array([b"abc", b"", b"\xff" * 9], np.object_)
    body, header_length = {
        "pixels": lambda: written(pixels_of(2), "UINT8", request_id="x"),
        "files": lambda: written(files, "BYTES"),
        "json": lambda: written(pixels_of(1), "UINT8", binary=False),
    }[kind]()
    length = len(body) if header_length is None else header_length
    damaged = bytearray(body)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(damaged) + 1)
        match rng.randrange(5):
            case 0:
                damaged[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del damaged[at : at + rng.randint(1, 20)]
            case 2:
                damaged[at:at] = rng.choice(
                    [b"[", b"{}", b"null", b"-1", b'"', b"99999999999999999999", b"1e999"]
                )
            case 3:
                damaged[at:at] = damaged[rng.randrange(len(damaged) + 1) :][: rng.randint(1, 40)]
            case 4:
                length = rng.choice([0, 1, length - 1, length + 1, len(damaged), rng.randrange(10**6)])
    with contextlib.suppress(InvalidInference):
        images = parse(bytes(damaged), rng.choice([length, length, None])).images
        if isinstance(images, list):
            assert 1 <= len(images) <= MAX_IMAGES
            assert all(type(image) is bytes for image in images)
        else:
            assert images.shape[1:] == (SIZE, SIZE, 3)
            assert 1 <= len(images) <= MAX_IMAGES


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@fuzzed
@given(
    path=st.sampled_from(
        [
            *("id", "inputs", "outputs", "parameters", "parameters.timeout", "parameters.priority"),
            *("inputs.0", "inputs.0.name", "inputs.0.datatype", "inputs.0.shape", "inputs.0.data"),
            *("inputs.0.parameters", "inputs.0.parameters.binary_data_size"),
        ]
    ),
    value=anything,
)
def test_any_value_anywhere_is_read_or_refused(path: str, value: Any) -> None:
    with contextlib.suppress(InvalidInference):
        parse(json.dumps(changed(path, value)).encode())


# --- answers

LABELS = tuple(Label(label=label) for label in ("cat", "dog: a hound", "Grüße", "eft", "fox"))
MANIFEST = Manifest.model_construct(name="tiny", version="1a", labels=LABELS)
LOGITS = np.array([[1.5, -2, 3.25, 3.25, 0], [9, 8, 7, 6, 5]], np.float32)


def read_by_tritonclient(inference: Inference) -> Any:
    answer = build_answer(inference, MANIFEST, LOGITS)
    return InferenceServerClient.parse_response_body(answer.body, header_length=answer.header_length)


@pytest.mark.parametrize("binary", [True, False])
def test_logits_as_tritonclient_reads_them(binary: bool) -> None:
    result = read_by_tritonclient(Inference([], id="7", binary=binary))
    np.testing.assert_array_equal(result.as_numpy("logits"), LOGITS)
    assert result.as_numpy("logits").dtype == np.float32
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("7", "tiny", "1a")
    assert ("data" in response["outputs"][0]) is not binary


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("num_classes", [1, 2, 5, 100, 10**30])
def test_classes_as_tritonclient_reads_them(binary: bool, num_classes: int) -> None:
    result = read_by_tritonclient(Inference([], num_classes=num_classes, binary=binary))
    classes = result.as_numpy("logits")
    assert classes.shape == (2, min(num_classes, 5))
    texts = [text.decode() if isinstance(text, bytes) else text for text in classes[0]]
    expected = [
        "3.250000:2:Grüße",
        "3.250000:3:eft",
        "1.500000:0:cat",
        "0.000000:4:fox",
        "-2.000000:1:dog: a hound",
    ]
    assert texts == expected[:num_classes]
    assert "id" not in result.get_response()


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("gzip", "gzip"),  # what tritonclient's response_compression_algorithm sends
        ("deflate", "deflate"),
        ("GZIP ; q=0.5", "gzip"),
        ("gzip, identity;q=0.5", "gzip"),
        ("gzip, br;q=0", "gzip"),
        ("br", None),
        ("", None),
        ("identity", None),
        ("*", None),
        ("gzip;q=0", None),
        ("gzip;q=0.000", None),
        ("gzip, deflate", None),  # what HTTP libraries send with every request
        ("gzip, deflate, br, zstd", None),
    ],
)
def test_compressed_only_where_it_is_asked_for(accept: str, encoding: str | None) -> None:
    assert wanted_encoding(accept) == encoding


def test_compressed_as_tritonclient_reads_it() -> None:
    answer = build_answer(Inference([]), MANIFEST, LOGITS)
    for encoding in ("gzip", "deflate"):
        result = InferenceServerClient.parse_response_body(
            compress(answer.body, encoding), header_length=answer.header_length, content_encoding=encoding
        )
        np.testing.assert_array_equal(result.as_numpy("logits"), LOGITS)


# --- bodies


def read(
    chunks: Iterable[bytes], encoding: str | None = None, max_bytes: int = 10_000, **headers: str
) -> bytes:
    left = iter(chunks)

    async def receive() -> Message:
        chunk = next(left, None)
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    if encoding is not None:
        headers["content-encoding"] = encoding
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    request = Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)
    return asyncio.run(read_body(request, SETTINGS, max_bytes))


def cut(body: bytes, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    cuts = sorted(rng.sample(range(len(body) + 1), min(len(body), rng.randint(0, 8))))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


COMPRESSORS: dict[str | None, Callable[[bytes], bytes]] = {
    None: bytes,
    "identity": bytes,
    "gzip": gzip.compress,
    "Deflate": zlib.compress,
}


@fuzzed
@given(
    body=st.binary(max_size=3000) | st.integers(0, 3000).map(bytes),
    seed=st.integers(0, 1000),
    encoding=st.sampled_from([*COMPRESSORS]),
    step=st.integers(1, 300) | st.just(2**18),
)
def test_a_body_is_read_however_it_comes(body: bytes, seed: int, encoding: str | None, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.http.oip.body.STEP_BYTES", step)
        assert read(cut(COMPRESSORS[encoding](body), seed), encoding) == body


@pytest.mark.parametrize("num_bytes", [2**18 - 1, 2**18, 2**18 + 1, 2**19, 2**19 + 100, 10**6])
def test_long_bodies_are_inflated_to_their_end(num_bytes: int) -> None:
    for body in (bytes(num_bytes), (random.Random(1).randbytes(1000) * num_bytes)[:num_bytes]):
        assert read(cut(gzip.compress(body, mtime=0), 1), "gzip", num_bytes) == body
        with pytest.raises(TooManyBytes):
            read(cut(gzip.compress(body, mtime=0), 1), "gzip", num_bytes - 1)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_refused_before_it_is_read_to_its_end(encoding: str) -> None:
    given = 0

    def bomb() -> Iterable[bytes]:
        nonlocal given
        compressor = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
        while True:  # for ever: a reader that does not stop would not
            chunk = compressor.compress(bytes(2**20))
            given += 2**20
            yield chunk

    with pytest.raises(TooManyBytes, match="decompressed"):
        read(bomb(), encoding, max_bytes=2**21)
    assert given < 2**24


@pytest.mark.parametrize("encoding", [*COMPRESSORS])
def test_a_body_over_the_limit_is_refused(encoding: str | None) -> None:
    noise = random.Random(1).randbytes(10_001)
    with pytest.raises(TooManyBytes):
        read(cut(COMPRESSORS[encoding](noise), 3), encoding)
    with pytest.raises(TooManyBytes):
        read([], encoding, content_length="10001")


@pytest.mark.parametrize(
    ("body", "encoding", "error"),
    [
        (b"{}", "br", UnsupportedMediaType),
        (b"{}", "gzip, gzip", UnsupportedMediaType),
        (b"{}", "gzip", InvalidInference),
        (b"", "gzip", InvalidInference),
        (gzip.compress(b"abc", mtime=0)[:-1], "gzip", InvalidInference),
        (gzip.compress(b"abc", mtime=0) + b"\0", "gzip", InvalidInference),
        (gzip.compress(b"abc", mtime=0) + gzip.compress(b"def", mtime=0), "gzip", InvalidInference),
        (gzip.compress(b"abc", mtime=0)[:-8] + bytes(8), "gzip", InvalidInference),
        (gzip.compress(b"abc", mtime=0), "deflate", InvalidInference),
        (zlib.compress(b"abc")[:-2], "deflate", InvalidInference),
    ],
)
def test_badly_compressed_bodies_are_refused(body: bytes, encoding: str, error: type[ResiduumError]) -> None:
    for seed in range(4):
        with pytest.raises(error):
            read(cut(body, seed), encoding)
