"""What RFC 9112 forbids in the head of a request, and the parser lets pass.

Two servers that read such a head differently can be made to disagree about whose request it is. This module
knows no connections: `protocol.py` refuses, answers and closes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from service.errors import MalformedRequest, UnsupportedTransferCoding

# uri-host [":" port] of RFC 9112, 3.2, as RFC 3986 has it: a name, an IPv4 or a bracketed IP literal.
HOST = re.compile(rb"(?:\[[0-9A-Za-z._~%:!$&'()*+,;=-]+\]|[0-9A-Za-z._~%!$&'()*+,;=-]*)(?::[0-9]*)?")


def check_head(version: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Check the version and the headers of a request.

    Args:
        version: such as "1.1"; "0.9" where the request line has none.
        headers: in lower case, in order.

    Raises:
        MalformedRequest: no version of HTTP/1, no single Host, or a Transfer-Encoding that does not
            end with chunked, or in HTTP/1.0.
        UnsupportedTransferCoding: the body is chunked, and coded in another way before that.
    """
    if version not in ("1.1", "1.0"):
        raise MalformedRequest(
            "The request line names no version of HTTP that is spoken here.", "End it with HTTP/1.1."
        )
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 and (hosts or version == "1.1"):
        raise MalformedRequest(
            f"The request has {len(hosts) or 'no'} Host headers.",
            "Send one header Host, as HTTP/1.1 demands.",
        )
    if hosts and not HOST.fullmatch(hosts[0].strip(b" \t")):
        raise MalformedRequest("The header Host names no host.", "Send the server's name and port.")
    lines = [value for name, value in headers if name == b"transfer-encoding"]
    if not lines:
        return
    *others, last = (coding.strip().lower() for coding in b",".join(lines).split(b","))
    if last != b"chunked" or version == "1.0":
        raise MalformedRequest(
            "The Transfer-Encoding does not say where the body ends.", "Send a Content-Length, or chunks."
        )
    if others:
        raise UnsupportedTransferCoding(
            "A Transfer-Encoding other than chunked is not supported.",
            "Send the body as it is, or in chunks.",
        )
