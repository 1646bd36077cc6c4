"""Build absolute links from PUBLIC_URL, or from the request if PUBLIC_URL is not set."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlencode

from quart import current_app, request

MAX_DECODED_PATH = 2_048  # bytes; a longer path matches no route, and is not decoded


class RequestUrl(NamedTuple):
    """The URL of a request.

    base: scheme and host, or PUBLIC_URL; empty if unknown. args: the query parameters.
    """

    base: str
    path: str
    args: Sequence[tuple[str, str]]

    def pages(self, page: int, *, last: int | None, has_next: bool) -> dict[str, str]:
        """Return the links of a page by relation, with the request's other query parameters.

        last: number of the last page; None: no such link, because the page is too deep.
        """
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
    """Return the absolute link to a path; the path itself if the host is unknown."""
    public: str | None = current_app.extensions["settings"].public_url
    if public is not None:
        return public + path
    return f"{request.scheme}://{request.host}{path}" if request.host else path


def link_header(links: Mapping[str, str]) -> dict[str, str]:
    """Return the Link header (RFC 8288) of `links`."""
    return {"Link": ", ".join(f'<{url}>; rel="{rel}"' for rel, url in links.items())}
