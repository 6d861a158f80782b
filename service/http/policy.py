"""What a route says about itself beside its handler, and the table in which a request finds it again.

A policy says who may call a route, and how the steps in `app.py` treat the call. The table is closed by
default: a call that matches no route needs a key wherever keys are set, and a path that could be read as a
route for administrators needs an admin key, whatever the method.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Scope

from artifact.manifest import GraphKind

CALL = "residuum.call"  # in a request's scope: the Call
HANDLER = TypeVar("HANDLER", bound=Callable[..., Any])
AS_GET = {"HEAD": "GET", "OPTIONS": "GET"}  # methods that change nothing


@dataclass(frozen=True)
class Policy:
    """The treatment of a call; the defaults are the strictest that an ordinary caller can meet.

    Args:
        access: who may call: "open": anybody, and also while the server drains; "key": who has an API key,
            where keys are set; "admin": who has an admin key.
        limited: the call counts against the rate limit.
        logged: a success has a line in the access log; a failure always has one.
        runs: the graphs of which the call runs one. It is refused before its body is read while all of these
            graphs are full.
        cached: the answer may be in the cache. While there is one, a full queue is no reason to refuse before
            the body is read.
        browser: which Content-Security-Policy the answer has.
        direct: the handler is called without the framework; direct.py says what it must look like.
    """

    access: Literal["open", "key", "admin"] = "key"
    limited: bool = True
    logged: bool = True
    runs: tuple[GraphKind, ...] = ()
    cached: bool = False
    browser: Literal["api", "docs", "page"] = "api"
    direct: bool = False


DEFAULT = Policy()
ADMIN = Policy(access="admin")
OPEN = Policy(access="open", limited=False)
# For monitoring, which calls them every few seconds.
WATCHED = Policy(access="open", limited=False, logged=False)


def follows(policy: Policy) -> Callable[[HANDLER], HANDLER]:
    """Decorate a route's handler with its policy; one without this decorator has DEFAULT."""

    def decorate(handler: HANDLER) -> HANDLER:
        handler.policy = policy  # type: ignore[attr-defined]
        return handler

    return decorate


def declared(route: BaseRoute, default: Policy = DEFAULT) -> Policy:
    """Return the policy that a route's handler declares."""
    policy: Policy = getattr(getattr(route, "endpoint", None), "policy", default)
    return policy


def policy_of(scope: Scope) -> Policy:
    """Return the policy of a request."""
    call: Call = scope.get(CALL, UNKNOWN)
    return call.policy


class Call(NamedTuple):
    """A method and a path, as far as the table knows them."""

    policy: Policy = DEFAULT
    route: Route | Mount | None = None
    params: Mapping[str, str] = {}  # of the path


UNKNOWN = Call()
FOR_ADMINS = Call(ADMIN)


class RouteTable:
    """Every route of the application with its policy; filled once, when the application is made."""

    def __init__(self) -> None:
        self._exact: dict[tuple[str, str], Call] = {}
        self._patterns: dict[str, list[tuple[re.Pattern[str], Route | Mount, Policy]]] = {}
        self._for_admins = re.compile("(?!)")  # matches nothing

    def add(self, routes: Iterable[BaseRoute], default: Policy = DEFAULT) -> None:
        """Add routes; `default` is the policy of handlers that declare none."""
        for route in routes:
            assert isinstance(route, Route | Mount)
            policy = declared(route, default)
            if policy.access == "admin":
                either = f"{self._for_admins.pattern}|{_anything_like(route.path)}"
                self._for_admins = re.compile(either, re.DOTALL)
            methods = (route.methods or ()) if isinstance(route, Route) else ("GET",)
            for method in methods:
                if isinstance(route, Route) and not route.param_convertors:
                    self._exact[method, route.path] = Call(policy, route)
                else:
                    patterns = self._patterns.setdefault(method, [])
                    patterns.append((route.path_regex, route, policy))

    def find(self, method: str, path: str) -> Call:
        """Return what is known about a call; UNKNOWN where no route fits it."""
        method = AS_GET.get(method, method)
        if (call := self._exact.get((method, path))) is not None:
            return call
        call = UNKNOWN
        for pattern, route, policy in self._patterns.get(method, ()):
            # The whole path: `$` in a route's expression also matches before a last newline.
            if match := pattern.fullmatch(path):
                call = Call(policy, route, match.groupdict())
                break
        if call.policy.access != "admin" and self._for_admins.fullmatch(path):
            return FOR_ADMINS
        if call is UNKNOWN and method != "GET":  # 405 on a page's path has the page's headers
            return Call(replace(DEFAULT, browser=self.find("GET", path).policy.browser))
        return call


def _anything_like(template: str) -> str:
    """Return an expression for every path that some reader could take for one of this template."""
    fixed = re.split(r"\{[^}]*\}", template)
    return ".+".join(map(re.escape, fixed)) + r"\s*"
