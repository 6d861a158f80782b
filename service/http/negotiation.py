"""Content negotiation: which of the forms of an answer the client likes best (RFC 9110, 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

from introspection.forms import FORMS, JSON, Form
from service.errors import NotAcceptable


def negotiate(accept: Sequence[str]) -> Form:
    """Return the form whose media type the client likes best; JSON if it does not say.

    Among equally liked forms, prefer the one named most exactly, then the first of FORMS (RFC 9110, 12.5.1).

    Raises:
        NotAcceptable: it accepts none of them.
    """
    ranges = [_media_range(text) for text in ",".join(accept).split(",") if text.strip()]
    if not ranges:
        return JSON
    liked = {}
    for offer in FORMS:
        patterns = (offer, offer.split("/")[0] + "/*", "*/*")
        matching = [(-patterns.index(name), quality) for name, quality in ranges if name in patterns]
        exactness, quality = max(matching, default=(0, 0.0))
        liked[offer] = (quality, exactness)
    best = max(FORMS, key=lambda offer: liked[offer])
    if liked[best][0] <= 0:
        raise NotAcceptable(
            "Nothing that Accept allows can be given.",
            f"Accept one of: {', '.join(FORMS)}.",
            offered=tuple(FORMS),
        )
    return FORMS[best]


def _media_range(text: str) -> tuple[str, float]:
    """Return ("image/*", 0.5) for `image/*;q=0.5`; a quality that is no number counts as 1."""
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, min(1.0, max(0.0, float(value)))
            except ValueError:
                break
    return name, 1.0
