"""The table of routes: what a call is known to be, and that it is closed where in doubt."""

from __future__ import annotations

import pytest
from fastapi import APIRouter, FastAPI
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from service.http.app import create_app, routers
from service.http.policy import ADMIN, DEFAULT, OPEN, UNKNOWN, Policy, RouteTable, follows

RUNS = Policy(runs=("classify",))
PAGE = Policy(access="open", browser="page")


@pytest.fixture(scope="module")
def table() -> RouteTable:
    router = APIRouter(prefix="/v9")

    @router.get("/open")
    @router.get("/open/{name}")
    @follows(OPEN)
    def anybody() -> None: ...

    @router.get("/undeclared")
    def undeclared() -> None: ...

    @router.post("/models/{name}/run")
    @follows(RUNS)
    def run() -> None: ...

    @router.post("/models/{name}/load")
    @follows(ADMIN)
    def load() -> None: ...

    made = RouteTable()
    made.add(router.routes)
    made.add([Mount("/files", StaticFiles(check_dir=False))], PAGE)
    return made


@pytest.mark.parametrize(
    ("method", "path", "policy"),
    [
        ("GET", "/v9/open", OPEN),
        ("HEAD", "/v9/open", OPEN),
        ("OPTIONS", "/v9/open/x", OPEN),
        ("POST", "/v9/open", DEFAULT),
        ("GET", "/v9/open/x/y", DEFAULT),
        ("GET", "/v9/open\n", DEFAULT),
        ("GET", "/v9/undeclared", DEFAULT),
        ("GET", "/v9/nowhere", DEFAULT),
        ("GET", "", DEFAULT),
        ("POST", "/v9/models/m/run", RUNS),
        ("PUT", "/v9/models/m/run", DEFAULT),
        ("POST", "/v9/models/m/load", ADMIN),
        ("GET", "/v9/models/m/load", ADMIN),
        ("PUT", "/v9/models/a/b/load", ADMIN),
        ("POST", "/v9/models/m\n/load\n", ADMIN),
        ("GET", "/files/a/b.css", PAGE),
        ("POST", "/files/a", Policy(browser="page")),
    ],
)
def test_the_policy_of_a_call(table: RouteTable, method: str, path: str, policy: Policy) -> None:
    assert table.find(method, path).policy == policy


def test_the_parameters_and_the_template_of_a_call(table: RouteTable) -> None:
    call = table.find("POST", "/v9/models/resnet18/run")
    assert call.params == {"name": "resnet18"}
    assert call.route is not None
    assert call.route.path == "/v9/models/{name}/run"
    assert table.find("GET", "/v9/nowhere") is UNKNOWN


def test_routers_are_found_in_their_package_and_open_ones_come_last() -> None:
    tags = [(router.tags or ["page"])[0] for router in routers()]
    watching = ["health", "metrics", "page"]
    assert tags == ["classify", "introspect", "models", "open inference protocol", *watching]


def test_the_application_knows_its_routes_as_the_router_does() -> None:
    """Every route that FastAPI has is found under its own template."""
    app: FastAPI = create_app()
    for router in routers():
        for route in router.routes:
            for method in route.methods - {"HEAD"}:  # type: ignore[attr-defined]
                path = route.path.replace("{path:path}", "p").replace("{rest:path}", "r")  # type: ignore[attr-defined]
                call = app.state.table.find(method, path.replace("{name}", "m").replace("{version}", "1"))
                assert call.route is route
