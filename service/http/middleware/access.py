"""Who may call what: every request passes here before its body is read.

Closed unless listed: a call that is not in OPEN needs a key wherever keys are set, so that a route somebody
adds later is not open by mistake. Loading and unloading needs an admin key always.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Forbidden, NotFound, Problem, Unauthorized
from service.http.middleware.keys import Keys, digest_of

# Of a call that is not open, in its scope: the digest of its key, None where it needs none.
CALLER = "residuum.caller"

# What holds no data of a user's or a model's, and what watches over the server: never a key, never a limit.
OPEN = re.compile(
    r"/|/docs|/docs/oauth2-redirect|/openapi\.json|/static-offline-docs/.+|/static/.+"
    r"|/metrics|/health/[^/]+|/v2/health/[^/]+|/v2/models/[^/]+(?:/versions/[^/]+)?/ready"
)
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))

ADMIN = re.compile(r"/(?:models|v2/repository/models)/.+/(?:load|unload)\s*", re.DOTALL)
# In no path of ours; and the expressions of routes end before a last newline, so that it would go unseen.
CONTROL = re.compile(r"[\x00-\x1f\x7f]")

HOW_TO_SEND = "Send it as `Authorization: Bearer KEY` or as `X-API-Key: KEY`."


class RequireKey:
    """401 without a valid key, 403 with one that does not suffice; answered before the body is read."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            if not is_open(scope["method"], scope["path"]):
                # In place: who is further out reads what routes leave in the scope.
                scope[CALLER] = self._admit(scope)
            if CONTROL.search(scope["path"]):
                raise NotFound("There is no such path: it has a control character in it.")
        except Problem as problem:
            await problem.answer(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> bytes | None:
        """The digest of the caller's key, None if it needs none; raises Unauthorized or Forbidden."""
        for_admins = ADMIN.fullmatch(scope["path"]) is not None
        if for_admins and not self.keys.any_of("admin"):
            raise Forbidden(
                "Nobody may load or unload models here: the server has no admin key.",
                "Set --admin-key-file, and start it again.",
            )
        if not for_admins and not self.keys.any_of("api"):
            return None
        wanted = "an admin key" if for_admins else "an API key"
        key = _key_in(scope["headers"])
        if key is None:
            raise Unauthorized(f"This call needs {wanted}.", HOW_TO_SEND)
        digest = digest_of(key)
        kind = self.keys.kind_of(digest)
        if kind is None:
            raise Unauthorized(f"This call needs {wanted}; the key that came is none.", HOW_TO_SEND)
        if for_admins and kind != "admin":
            raise Forbidden("This call needs an admin key; the key that came is an API key.")
        return digest


def is_open(method: str, path: str) -> bool:
    """May anybody make this call, as often as they like?"""
    return method in SAFE_METHODS and OPEN.fullmatch(path) is not None


def _key_in(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The request's key; X-API-Key counts before Authorization, which a proxy may want for itself."""
    bearer = None
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip()
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            bearer = value[7:].strip()
    return bearer
