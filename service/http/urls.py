"""Absolute links: from PUBLIC_URL, or from the request if it is not set (development)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlencode

from quart import current_app, request

LONGEST_PATH = 2_048  # bytes of a path: no route is longer, so a longer path is not decoded


class RequestUrl(NamedTuple):
    """The URL of a request.

    base: the start of links; empty if unknown. args: the parameters of the query.
    """

    base: str
    path: str
    args: Sequence[tuple[str, str]]

    def pages(self, page: int, *, last: int | None, has_next: bool) -> dict[str, str]:
        """Return the links of a page, with the other parameters. `last`: None if too far."""
        others = [(name, value) for name, value in self.args if name != "page"]
        before = f"{self.base}{self.path}?{urlencode([*others, ('page', '')])}"
        links = {"self": f"{before}{page}", "first": f"{before}1"}
        if last is not None:
            links["last"] = f"{before}{last}"
        if has_next:
            links["next"] = f"{before}{page + 1}"
        if page > 1:
            links["prev"] = f"{before}{page - 1}"
        return links


def absolute(path: str) -> str:
    """Return the absolute link to a path."""
    public: str | None = current_app.extensions["settings"].public_url
    if public is not None:
        return public + path
    return f"{request.scheme}://{request.host}{path}" if request.host else path


def link_header(links: Mapping[str, str]) -> dict[str, str]:
    """Return the Link header (RFC 8288) of `links`."""
    return {"Link": ", ".join(f'<{url}>; rel="{rel}"' for rel, url in links.items())}
