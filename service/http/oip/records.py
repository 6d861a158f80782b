"""The JSON objects that requests bring, checked member by member. What a tensor holds is for request.py."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from service.errors import InvalidInference, TooManyBytes

# Parsing holds up every other request of the process: by up to 0.4 s within these limits, by 1 s without the
# second one. A pixel that is a list, `[0,0,0],`, has 8 bytes.
MAX_JSON_BYTES = 4 * 2**20
MAX_JSON_LISTS = MAX_JSON_BYTES // 8
MAX_TENSORS = 16

Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(max_length=256)]  # errors repeat it


class Record(BaseModel):
    """Values as they are, none converted; members that have no meaning here are passed over."""

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
    """Of a request; `timeout` in microseconds, 0: none."""

    timeout: Count = 0
    priority: Count = 0  # of no effect: requests of one model are served in turn
    binary_data_output: bool = False


class InferRequest(Record):
    """The JSON object."""

    id: str | None = None
    inputs: list[Input] = Field(max_length=MAX_TENSORS)
    outputs: list[Output] = Field([], max_length=MAX_TENSORS)
    parameters: Parameters = Parameters()


class IndexRequest(Record):
    """Of the repository's index; `ready`: of loaded models only."""

    ready: bool = False


class LoadRequest(Record):
    """Of loading and unloading."""

    parameters: dict[str, Any] = Field({})


RecordT = TypeVar("RecordT", bound=Record)


def parse_json(text: bytes, kind: type[RecordT]) -> RecordT:
    """The JSON object as a record.

    Raises:
        InvalidInference: it is none, or a member of it is not as it should be.
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
