"""The server against its own OpenAPI document: schemathesis asks every operation, soundly and unsoundly.

What it checks of an answer: no server error but 503, a status, media type and document that are described for
the operation, 405 with Allow for other methods, and a refusal of what the description does not allow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS, load_all_checks

from service.http.app import create_app
from tests.support.images import CASES
from tests.support.live import LiveServer, live_server

MODEL = "tiny-imagenet-resnet18"
ADMIN = {"X-API-Key": "admin"}
CHANGES = ("/load", "/unload")
JPEG = CASES["jpeg"][0]
HEADER_LENGTH = "Inference-Header-Content-Length"
INFERENCE = json.dumps(
    {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 64, 64, 3], "data": [0] * 64 * 64 * 3}]}
).encode()

images = st.sampled_from([data for data, _, _ in CASES.values()])
schemathesis.openapi.format("binary", images | st.binary())
schemathesis.openapi.media_type("image/*", images | st.binary())
APP = create_app()
schema = schemathesis.openapi.from_dict(APP.openapi())
schema.config.checks.not_a_server_error.expected_statuses = ["2xx", "4xx", "503"]
load_all_checks()
# No schema describes which bytes are an image, which names a network's blocks have, and which inputs fit it.
DESCRIBED_IN_PART = [CHECKS.get_one("positive_data_acceptance")]
# Who may not call is told so before it is known whether there is such a call.
KEY_COMES_FIRST = [*DESCRIBED_IN_PART, CHECKS.get_one("unsupported_method")]


def examples(number: int) -> settings:
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@schema.hook
def flatmap_path_parameters(context: schemathesis.HookContext, path_parameters: Any) -> Any:
    """Half of the names are the model's, where that changes nothing."""
    assert context.operation is not None
    if context.operation.path.endswith(CHANGES):
        return st.just(path_parameters)
    return st.sampled_from([{"name": MODEL}, path_parameters])


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(api_key="user", admin_key="admin", max_batch_size=1) as started:
        yield started


@schema.parametrize()
@examples(12)
def test_every_operation_answers_as_documented(case: schemathesis.Case, server: LiveServer) -> None:
    case.call_and_validate(base_url=server.url, headers=ADMIN, excluded_checks=DESCRIBED_IN_PART)


@schema.parametrize()
@examples(1)
def test_so_it_does_without_a_key(case: schemathesis.Case, server: LiveServer) -> None:
    answer = case.call(base_url=server.url)
    case.validate_response(answer, excluded_checks=KEY_COMES_FIRST)
    policy = APP.state.table.find(case.method, case.formatted_path).policy
    assert (answer.status_code == 401) == (policy.access != "open")


@pytest.mark.parametrize("prefix", ["", "/v2/repository"])
def test_a_model_is_unloaded_and_loaded_as_documented(server: LiveServer, prefix: str) -> None:
    for action in ("unload", "load"):
        operation = schema[f"{prefix}/models/{{name}}/{action}"]["POST"]
        case = operation.Case(path_parameters={"name": MODEL})
        answer = case.call_and_validate(base_url=server.url, headers=ADMIN)
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "body", "status"),
    [
        ("/introspect", {"Accept": "application/x-npz"}, JPEG, 200),
        ("/introspect", {"Accept": "image/png"}, JPEG, 200),
        ("/introspect", {"Accept": "text/html"}, JPEG, 406),
        ("/classify", {"Content-Encoding": "gzip"}, JPEG, 415),
        ("/v2/models/{name}/infer", {}, INFERENCE, 200),
        ("/v2/models/{name}/infer", {HEADER_LENGTH: "0"}, JPEG, 200),
        ("/v2/models/{name}/infer", {HEADER_LENGTH: "-1"}, JPEG, 400),
        ("/v2/models/{name}/infer", {"Content-Encoding": "br"}, INFERENCE, 415),
        ("/v2/repository/index", {"Content-Encoding": "br"}, INFERENCE, 415),
        ("/v2/repository/models/{name}/load", {"Content-Encoding": "br"}, b"{}", 415),
        ("/v2/repository/models/{name}/unload", {"Content-Encoding": "br"}, b"{}", 415),
    ],
)
def test_what_headers_bring_about(
    server: LiveServer, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    """Headers that change the answer, in ways that no description of a body leads to."""
    case = schema[path]["POST"].Case(path_parameters={"name": MODEL} if "{name}" in path else {})
    request = requests.Request("POST", server.url + path.format(name=MODEL), headers | ADMIN, data=body)
    with requests.Session() as session:
        answer = session.send(request.prepare())
    case.validate_response(answer, excluded_checks=DESCRIBED_IN_PART)
    assert answer.status_code == status


def test_metrics_in_both_formats(server: LiveServer) -> None:
    for accept in ("text/plain", "application/openmetrics-text; version=1.0.0"):
        schema["/metrics"]["GET"].Case().call_and_validate(base_url=server.url, headers={"Accept": accept})


def test_what_is_served_is_what_was_tested(server: LiveServer) -> None:
    served = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    assert served.raw_schema == schema.raw_schema


def test_every_call_that_is_not_open_documents_what_any_may_be_answered() -> None:
    """401 without a key, 429 above the rate limit, 503 while the server drains."""
    for result in schema.get_all_operations():
        operation = result.ok()
        call = APP.state.table.find(operation.method.upper(), operation.path.replace("{name}", MODEL))
        if call.policy.access != "open":
            documented = set(operation.definition.raw["responses"])
            assert documented >= {"401", "429", "503"}, operation.label
