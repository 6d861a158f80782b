"""Invalid requests of the Open Inference Protocol: wrong JSON, lengths, tensors or compression.

Each is made from a valid request, with pixels or files, in JSON or binary, by one change.
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from benchmarks.hostile.forms import corpus
from benchmarks.hostile.images import mutated
from benchmarks.hostile.request import HostileRequest, some_delivery

HEADER_LENGTH = "Inference-Header-Content-Length"
MARK = "\0here\0"  # placeholder for a fragment of JSON that json.dumps would not write
FRAGMENTS = (
    "null", "true", "0", "-1", "1.5", "-0.0", "1e999", "-1e999", "1e-400", "NaN", "Infinity", "01", "0x10",
    "9223372036854775808", "18446744073709551616", "1" * 5000, "0." + "3" * 5000,
    '""', '"a"', "'a'", '"\\u0000"', '"\\ud800"', '"' + "x" * 100_000 + '"', '["a","b"]', '{"":{}}', "{}",
    "[]", "[null]", "[256]", "[-1]", "[true]", "[1e999]", "[[[[1]]]]", "[" + "0," * 300_000 + "0]",
    "[" * 200 + "]" * 200, "[" * 100_000, '{"a":' * 100_000,
)  # fmt: skip
DATATYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16",
    "BYTES", "uint8", "", "STRING", "UINT8 ",
)  # fmt: skip
SHAPES: tuple[list[Any], ...] = (
    [], [0], [1], [2], [-1], [33], [1, 1], [1, 2], [0, 64, 64, 3], [-1, 64, 64, 3], [1, 64, 64],
    [1, 3, 64, 64], [2**31, 2**31, 2**31, 2**31], [2**63], [10**30], [1] * 17, [1] * 5000,
    [1.0], ["1"], [None], [True], [[1]],
)  # fmt: skip
LENGTHS = (
    "-1", "0", "1", "+5", " 5 ", "5.0", "1e3", "0x10", "", "9" * 14, "9" * 400, "12, 12", "\xb2", "nan",
)  # fmt: skip
BRANCHES = (
    "infer", "versions/1/infer", "versions/%2e%2e/infer", "versions/{version}/infer", "ready", "config",
)  # fmt: skip
CHANGES = ("index", "models/{name}/load", "models/{name}/unload", "models/..%2f/load", "models/%00/unload")


@dataclass(frozen=True)
class Model:
    """The served model."""

    name: str
    version: str
    size: int  # side of its input images, in pixels


@dataclass(frozen=True)
class Inference:
    """A request in parts; `length` is the header with the JSON's length, None for no header."""

    document: dict[str, Any]
    tail: bytes = b""
    text: bytes | None = None  # instead of the document
    length: str | None = ""  # empty: the true length
    headers: dict[str, str] = field(default_factory=dict)
    packed: Callable[[bytes], bytes] = bytes


Oddity = Callable[[random.Random, Inference], Inference]


def inference_request(chance: random.Random, model: Model) -> HostileRequest:
    oddity = chance.choices(ODDITIES, WEIGHTS)[0]
    odd = oddity(chance, sound_inference(chance, model))
    text = json.dumps(odd.document).encode() if odd.text is None else odd.text
    length = odd.length if odd.length or not odd.tail else str(len(text))
    headers = odd.headers | ({HEADER_LENGTH: length} if length else {})
    return HostileRequest(
        f"inference {oddity.__name__}",
        _path(chance, model),
        odd.packed(text + odd.tail),
        headers,
        some_delivery(chance),
    )


def _path(chance: random.Random, model: Model) -> str:
    names = {"name": model.name, "version": model.version}
    if chance.random() < 0.9:
        return f"/v2/models/{model.name}/infer"
    if chance.random() < 0.5:
        return f"/v2/repository/{chance.choice(CHANGES)}".format(**names)
    return f"/v2/models/{model.name}/{chance.choice(BRANCHES)}".format(**names)


def sound_inference(chance: random.Random, model: Model) -> Inference:
    document: dict[str, Any] = {"id": "1", "inputs": [{"name": "images"}]}
    if chance.random() < 0.5:
        document["outputs"] = [{"name": "logits", "parameters": {"binary_data": chance.random() < 0.5}}]
    if chance.random() < 0.3:
        document["parameters"] = {"timeout": 10**7, "priority": 1, "binary_data_output": True}
    (tensor,), kind = document["inputs"], chance.random()
    if kind < 0.1:
        tensor |= {"datatype": "UINT8", "shape": [1, model.size, model.size, 3], "data": _numbers(model.size)}
        return Inference(document, length=None)
    if kind < 0.6:
        number = chance.choice((1, 1, 2, 5))
        tensor |= {"datatype": "UINT8", "shape": [number, model.size, model.size, 3]}
        tail = chance.randbytes(3 * model.size**2) * number
    else:
        files = [chance.choice(corpus()) for _ in range(chance.choice((1, 1, 2, 5)))]
        tensor |= {"datatype": "BYTES", "shape": [len(files)]}
        tail = b"".join(len(file).to_bytes(4, "little") + file for file in files)
    tensor["parameters"] = {"binary_data_size": len(tail)}
    return Inference(document, tail)


@cache
def _numbers(size: int) -> list[int]:
    return [index % 256 for index in range(3 * size**2)]


# --- changes -----------------------------------------------------------------------------------------


def nothing(_: random.Random, sound: Inference) -> Inference:
    return sound


def odd_value(chance: random.Random, sound: Inference) -> Inference:
    """Replace a value of the JSON by something else."""
    document = _with_own_lists(sound.document)
    container, key = chance.choice(list(_places(document)))
    container[key] = MARK
    return replace(sound, text=_filled(document, chance.choice(FRAGMENTS)))


def odd_member(chance: random.Random, sound: Inference) -> Inference:
    """Remove a member of the JSON, repeat one, or add one that does not belong there."""
    document = _with_own_lists(sound.document)
    container, key = chance.choice([place for place in _places(document) if isinstance(place[0], dict)])
    name = chance.choice(
        ("shared_memory_region", "data", "classification", "x" * 5000, "", "\0", "__class__")
    )
    action = chance.random()
    if action < 0.3:
        del container[key]
        return replace(sound, document=document)
    container[MARK if action < 0.6 else name] = chance.choice((0, 1, 10**18, -1, None, "a", [], {}))
    text = json.dumps(document).replace(json.dumps(MARK), json.dumps(key))
    return replace(sound, text=text.encode())


def odd_tensor(chance: random.Random, sound: Inference) -> Inference:
    """Change the type, shape, name or number of the inputs."""
    document = _with_own_lists(sound.document)
    (tensor,) = document["inputs"]
    action = chance.randrange(4)
    if action == 0:
        tensor["datatype"] = chance.choice(DATATYPES)
    elif action == 1:
        tensor["shape"] = chance.choice(SHAPES)
    elif action == 2:
        tensor["name"] = chance.choice(("image", "logits", "", "a" * 10_000, "\ud800", "images\0"))
    else:
        document["inputs"] *= chance.choice((0, 2, 16, 17, 3000)) if "data" not in tensor else 2
    return replace(sound, document=document)


def damaged_json(chance: random.Random, sound: Inference) -> Inference:
    text = bytearray(json.dumps(sound.document).encode())
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(min(len(text), 400))
        action = chance.randrange(3)
        if action == 0:
            text[at] ^= 1 << chance.randrange(8)
        elif action == 1:
            text[at:at] = chance.choice(
                (b"[", b"]", b"{", b"}", b'"', b",", b"\0", b"\xff", b"\\", b"//", b"\xef")
            )
        else:
            del text[at : at + chance.choice((1, 3, 1000))]
        text = text or bytearray(b"{")
    return replace(sound, text=bytes(text))


def lying_length(chance: random.Random, sound: Inference) -> Inference:
    """Declare a wrong length of the JSON in the header."""
    right = len(json.dumps(sound.document))
    near = (right - 1, right + 1, 2 * right, right + len(sound.tail), right + len(sound.tail) + 1)
    return replace(sound, length=chance.choice((*LENGTHS, *map(str, near))))


def lying_size(chance: random.Random, sound: Inference) -> Inference:
    """Declare a tensor size that differs from the bytes sent."""
    document, size = _with_own_lists(sound.document), len(sound.tail)
    sizes = (0, 1, size - 1, size + 1, -1, 2**31, 2**63, 2**64, 10**30)
    document["inputs"][0]["parameters"] = {"binary_data_size": chance.choice((size, *sizes))}
    tail = chance.choice((b"", sound.tail[:-1], sound.tail + b"\0", sound.tail[: size // 2], sound.tail * 2))
    return replace(sound, document=document, tail=tail)


def lying_elements(chance: random.Random, sound: Inference) -> Inference:
    """Send BYTES with wrong lengths, or with very many elements."""
    tail = chance.choice(
        (
            b"\xff\xff\xff\xff",
            b"\1\0\0",
            b"\0\0\0\0" * chance.choice((1, 33, 100_000)),
            b"\1\0\0\0a" * 100_000,
            b"\xff\xff\xff\x7f" + b"a" * 100,
            (100).to_bytes(4, "little") + b"a" * 99,
            (100).to_bytes(4, "little") + b"a" * 101,
        )
    )
    shape = chance.choice(([1], [2], [1, 1], [33], [100_000], [0]))
    tensor = {"name": "images", "datatype": "BYTES", "shape": shape}
    tensor["parameters"] = {"binary_data_size": len(tail)}
    return replace(sound, document=sound.document | {"inputs": [tensor]}, tail=tail)


def hostile_files(chance: random.Random, sound: Inference) -> Inference:
    """Send damaged images, as BYTES or alone as the body."""
    files = [mutated(chance, corpus())[1] for _ in range(chance.choice((1, 1, 3)))]
    if chance.random() < 0.3:
        return replace(sound, text=b"", tail=files[0], length="0")
    tail = b"".join(len(file).to_bytes(4, "little") + file for file in files)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(files), 1]}
    tensor["parameters"] = {"binary_data_size": len(tail)}
    return replace(sound, document=sound.document | {"inputs": [tensor]}, tail=tail, length="")


def compressed(chance: random.Random, sound: Inference) -> Inference:
    """Compress the body: correctly, cut off, damaged, twice, or unlike Content-Encoding."""
    encoding = chance.choice(("gzip", "deflate", "GZIP", "x-gzip", "br", "gzip, gzip", "identity", "zstd"))
    return replace(
        sound, headers={"Content-Encoding": encoding}, packed=lambda body: _badly_packed(chance, body)
    )


def bomb(chance: random.Random, sound: Inference) -> Inference:
    """Send a small body that inflates to a size just below or above the limit."""
    encoding = chance.choice(("gzip", "deflate"))
    body = _inflating(encoding, chance.choice((5, 60, 70)))
    length = chance.choice((None, "0", "100"))
    return Inference({}, length=length, headers={"Content-Encoding": encoding}, packed=lambda _: body)


@cache
def _inflating(encoding: str, num_mib: int) -> bytes:
    spaces = b" " * (num_mib * 2**20)
    return gzip.compress(spaces, mtime=0) if encoding == "gzip" else zlib.compress(spaces)


def _badly_packed(chance: random.Random, body: bytes) -> bytes:
    packed = gzip.compress(body, 1, mtime=0) if chance.random() < 0.5 else zlib.compress(body, 1)
    action = chance.randrange(6)
    if action == 0:
        return packed[: chance.randrange(len(packed))]
    if action == 1:
        at = chance.randrange(len(packed))
        return packed[:at] + bytes([packed[at] ^ 1 << chance.randrange(8)]) + packed[at + 1 :]
    if action == 2:
        return packed + chance.choice((b"\0", packed, gzip.compress(b"", mtime=0) * 5000))
    return gzip.compress(packed, mtime=0) if action == 3 else packed


ODDITIES: tuple[Oddity, ...] = (
    nothing, odd_value, odd_member, odd_tensor, damaged_json, lying_length, lying_size, lying_elements,
    hostile_files, compressed, bomb,
)  # fmt: skip
WEIGHTS = (5, 20, 10, 15, 15, 8, 8, 6, 8, 8, 0.3)


# --- positions in a document -------------------------------------------------------------------------


def _with_own_lists(document: dict[str, Any]) -> dict[str, Any]:
    """Return a copy that can be changed; of `data`, which is long, only the outer list is copied."""
    inputs = [{**tensor} for tensor in document["inputs"]]
    data = [tensor.pop("data", None) for tensor in inputs]
    copied = deepcopy({**document, "inputs": inputs})
    for tensor, values in zip(copied["inputs"], data, strict=True):
        if values is not None:
            tensor["data"] = [*values]
    return copied


def _places(value: Any) -> Any:
    """Yield (container, key) of every value in a document; of a list only the first three."""
    keys = list(value) if isinstance(value, dict) else range(min(3, len(value)))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list) and value[key]:
            yield from _places(value[key])


def _filled(document: dict[str, Any], fragment: str) -> bytes:
    return json.dumps(document).replace(json.dumps(MARK), fragment).encode()
