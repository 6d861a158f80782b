"""Keys: the check of every request before its body is read.

Who may call a route stands beside its handler (policy.py). This module asks for the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.types import Scope

from service.errors import Forbidden, NotFound, Unauthorized
from service.http.middleware.keys import Keys, digest_of
from service.http.policy import policy_of

# In a request's scope: the digest of the caller's key; None where the call needs no key.
CALLER = "residuum.caller"

# No path of ours has one. The expressions of routes would match a path with a newline at its end.
CONTROL = re.compile(r"[\x00-\x1f\x7f]")

HOW_TO_SEND = "Send it as `Authorization: Bearer KEY` or as `X-API-Key: KEY`."


class RequireKey:
    """The check that refuses without a valid key, and with an API key where an admin key is needed."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys

    def __call__(self, scope: Scope) -> None:
        access = policy_of(scope).access
        # In place: steps further out read what routes leave in the scope.
        scope[CALLER] = None if access == "open" else self._admit(scope, for_admins=access == "admin")
        if CONTROL.search(scope["path"]):
            raise NotFound("There is no such path: it has a control character in it.")

    def _admit(self, scope: Scope, for_admins: bool) -> bytes | None:
        """Return the digest of the caller's key, None if no key is needed.

        Raises:
            Unauthorized: there is no key, or an unknown one.
            Forbidden: the key is not an admin's.
        """
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


def _key_in(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the request's key; X-API-Key comes first, because a proxy may use Authorization for itself."""
    bearer = None
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip()
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            bearer = value[7:].strip()
    return bearer
