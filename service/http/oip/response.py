"""Write the answer to an inference request: JSON, with the output in it or, as bytes, after it.

Shapes: N images, K classes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from artifact.manifest import Label, Manifest
from artifact.postprocess import top_classes
from service.http.oip.request import LOGITS, Inference

COMPRESSION_LEVEL = 1  # logits hardly compress: higher levels take longer and save nothing
WINDOW_BITS = {
    "gzip": 16 + zlib.MAX_WBITS,
    "deflate": zlib.MAX_WBITS,
}  # Content-Encoding: zlib's `wbits`


class Answer(NamedTuple):
    body: bytes
    header_length: int | None  # bytes of the JSON; None if nothing follows it


def build_answer(inference: Inference, manifest: Manifest, logits_NK: NDArray[Any]) -> Answer:
    """Return the answer in the form that `inference` asks for."""
    output: dict[str, Any] = {"name": LOGITS}
    payload = b""
    if inference.num_classes is None:
        logits_NK = logits_NK.astype("<f4", copy=False)
        output |= {"datatype": "FP32", "shape": list(logits_NK.shape)}
        if inference.binary:
            payload = logits_NK.tobytes()
        else:
            output["data"] = logits_NK.ravel().tolist()
    else:
        best = [best_classes(row_K, manifest.labels, inference.num_classes) for row_K in logits_NK]
        output |= {"datatype": "BYTES", "shape": [len(best), len(best[0])]}
        texts = [text for row in best for text in row]
        if inference.binary:
            payload = bytes_tensor([text.encode() for text in texts])
        else:
            output["data"] = texts
    if inference.binary:
        output["parameters"] = {"binary_data_size": len(payload)}
    document: dict[str, Any] = {} if inference.id is None else {"id": inference.id}
    document |= {"model_name": manifest.name, "model_version": manifest.version, "outputs": [output]}
    header = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return Answer(header + payload, len(header) if inference.binary else None)


def best_classes(logits_K: NDArray[Any], labels: Sequence[Label], num_classes: int) -> list[str]:
    """Return `value:index:label` of the highest logits, best first; of equal logits the lower index first."""
    best = top_classes(logits_K, num_classes)
    return [f"{logits_K[index]:f}:{index}:{labels[index].label}" for index in best]


def bytes_tensor(values: Sequence[bytes]) -> bytes:
    """Return a BYTES tensor: each element is preceded by its length, as request.elements reads it."""
    return b"".join(part for value in values for part in (len(value).to_bytes(4, "little"), value))


def wanted_encoding(accept: str) -> str | None:
    """Return the only coding that Accept-Encoding names, if it is one of WINDOW_BITS; else None.

    A list such as `gzip, deflate, br` asks for nothing: HTTP libraries send it with every request.
    tritonclient's asynchronous client does so too, and does not decompress unless told to.
    """
    named = [coding.partition(";") for coding in accept.lower().replace(" ", "").split(",")]
    wanted = [name for name, _, weight in named if name not in ("", "identity") and not _is_zero(weight)]
    return wanted[0] if len(wanted) == 1 and wanted[0] in WINDOW_BITS else None


def _is_zero(weight: str) -> bool:
    """Return whether a weight such as `q=0` or `q=0.000` says: not acceptable."""
    return weight.startswith("q=") and not weight[2:].strip("0.")


def compress(body: bytes, encoding: str) -> bytes:
    compressor = zlib.compressobj(COMPRESSION_LEVEL, wbits=WINDOW_BITS[encoding])
    return compressor.compress(body) + compressor.flush()
