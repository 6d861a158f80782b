"""The JSON objects of requests, checked member by member; request.py reads the tensors' contents."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from service.errors import InvalidInference, TooManyBytes

# Parsing blocks the event loop, and so all other requests of the process: for up to 0.4 s within these
# limits, and for 1 s without the second one. The 8 are the bytes of a pixel as a list, `[0,0,0],`.
MAX_JSON_BYTES = 4 * 2**20
MAX_JSON_LISTS = MAX_JSON_BYTES // 8
MAX_TENSORS = 16

Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(max_length=256)]  # limited, because errors repeat it


class Record(BaseModel):
    """Base of the records: no value is converted, and unknown members are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class InputParameters(Record):
    binary_data_size: Count | None = None
    shared_memory_region: Any = None


class Input(Record):
    name: Name
    datatype: Name
    shape: list[int] = Field(max_length=MAX_TENSORS)
    parameters: InputParameters = InputParameters()
    data: Any = None


class OutputParameters(Record):
    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=1)] | None = None
    shared_memory_region: Any = None


class Output(Record):
    name: Name
    parameters: OutputParameters = OutputParameters()


class Parameters(Record):
    """Parameters of a request; `timeout` is in microseconds, and 0 means none."""

    timeout: Count = 0
    priority: Count = 0  # has no effect: requests for one model are served in turn
    binary_data_output: bool = False


class InferRequest(Record):
    """The JSON object of an inference request."""

    id: str | None = None
    inputs: list[Input] = Field(max_length=MAX_TENSORS)
    outputs: list[Output] = Field([], max_length=MAX_TENSORS)
    parameters: Parameters = Parameters()


class IndexRequest(Record):
    """The JSON object of a request for the index; `ready` asks for loaded models only."""

    ready: bool = False


class LoadRequest(Record):
    """The JSON object of a request to load or unload a model."""

    parameters: dict[str, Any] = Field({})


RecordT = TypeVar("RecordT", bound=Record)


def parse_json(text: bytes, kind: type[RecordT]) -> RecordT:
    """Return the JSON object in `text` as a record.

    Raises:
        InvalidInference: it is not JSON, not an object, or a member is invalid.
        TooManyBytes: it is too long.
    """
    if len(text) > MAX_JSON_BYTES:
        raise TooManyBytes(
            f"The JSON of a request may have {MAX_JSON_BYTES:,} bytes at most; this has {len(text):,}.",
            "Send tensors as binary data.",
        )
    if text.count(b"[") + text.count(b"{") > MAX_JSON_LISTS:
        raise InvalidInference(f"The body's JSON has more than {MAX_JSON_LISTS:,} lists and objects.")
    try:
        return kind.model_validate(from_json(text))
    except ValidationError as error:  # which is a ValueError too
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        what = "Input should be an object" if first["type"] == "model_type" else first["msg"]
        raise InvalidInference(f"{where}: {what[0].lower()}{what[1:]}.") from error
    except ValueError as error:
        raise InvalidInference(f"The body's JSON cannot be read: {error}.") from error
