"""Preconditions of writes: If-Match and If-None-Match (RFC 9110, 13.1).

A write compares the tags with the row that its transaction has locked. So of several writers that
send the same tag, exactly one changes the row.
"""

import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

from service.errors import APIError, PreconditionFailedError, PreconditionRequiredError
from service.http.call import Call
from service.http.documentation import document_errors
from service.http.operations import Handler, Reply
from service.http.responses import TAG_SUFFIXES, etag

CONDITIONAL = "_octavo_conditional"  # attribute of a view: it reads preconditions
ANY = "*"
TAG = r'(?:W/)?("[!#-~\x80-\xff]*")'  # RFC 9110, 8.8.3
# A list with empty elements (RFC 9110, 5.6.1.2). The time to match is proportional to the length.
LIST = rf"[ \t,]*(?:{TAG}(?:[ \t]*,[ \t,]*{TAG})*[ \t,]*)?"
PATTERN = rf"^(?:\*|{LIST})$"

_TAG, _FIELD = re.compile(TAG), re.compile(PATTERN)


class Preconditions(NamedTuple):
    """The preconditions of a request.

    if_match, if_none_match: tags as `parse_tags` returns them; None: the field is absent.
    is_required: whether If-Match must be present (REQUIRE_IF_MATCH).
    """

    if_match: frozenset[str] | None = None
    if_none_match: frozenset[str] | None = None
    is_required: bool = False

    def check(self, body: Callable[[], bytes]) -> None:
        """Compare the tags with the locked row. body: makes the row's JSON, as a GET shows it.

        `W/"tag"` and the tags of the compressed forms match, too: all of them are hashes of this
        JSON. Raises PreconditionRequiredError or PreconditionFailedError.
        """
        if self.if_match is None and self.is_required:
            raise PreconditionRequiredError
        if self.if_match is None and self.if_none_match is None:
            return
        tag = etag(body())
        current = {ANY, *(f'"{tag}{suffix}"' for suffix in TAG_SUFFIXES)}
        if self.if_match is not None and self.if_match.isdisjoint(current):
            raise PreconditionFailedError(tag)
        if self.if_none_match is not None and not self.if_none_match.isdisjoint(current):
            raise PreconditionFailedError(tag, "If-None-Match matches the present ETag")


NO_PRECONDITIONS = Preconditions()


def parse_tags(lines: Sequence[str]) -> frozenset[str]:
    """Return the quoted tags in the field lines of If-Match or If-None-Match, without `W/`.

    `*` is returned as ANY, which no quoted tag equals. Raises ValueError for any other content.
    """
    value = ", ".join(lines)
    if _FIELD.fullmatch(value) is None:
        raise ValueError("Neither * nor a list of entity tags")
    return frozenset([ANY] if value == ANY else _TAG.findall(value))


def conditional(handler: Handler) -> Handler:
    """Pass the preconditions of a write as `preconditions`, and document them.

    The handler must `check` them after all other checks, with the locked row. Raises APIError (400)
    if a field is malformed.
    """

    @wraps(handler)
    async def guarded(call: Call, **values: Any) -> Reply:
        preconditions = Preconditions(
            _read("If-Match", call.headers.if_match),
            _read("If-None-Match", call.headers.if_none_match),
            call.settings.require_if_match,
        )
        return await handler(call, preconditions=preconditions, **values)

    setattr(guarded, CONDITIONAL, True)
    return document_errors(412, 428)(guarded)


def _read(name: str, lines: Sequence[str]) -> frozenset[str] | None:
    if not lines:
        return None
    try:
        return parse_tags(lines)
    except ValueError:
        raise APIError(f"{name} must be * or a list of quoted entity tags") from None
