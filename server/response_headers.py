"""Headers of every answer, for whoever shows one in a browser: what it may do there, and who may keep it."""

from collections.abc import Iterable

Headers = Iterable[tuple[bytes, bytes]]

ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
# where a route says nothing else: answers differ by key and by moment, and none is a page
UNLESS_SET = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


def completed(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer with those that it lacks."""
    given = list(headers)
    names = {name.lower() for name, _ in given}
    return [*given, *ALWAYS, *(header for header in UNLESS_SET if header[0] not in names)]
