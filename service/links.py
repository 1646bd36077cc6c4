"""Links, which are absolute: from PUBLIC_URL; without one (development) from the request."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlencode

from quart import current_app, request


class RequestUrl(NamedTuple):
    """Where a request has come.

    base: what links begin with; empty where nobody knows. args: the parameters of its query.
    """

    base: str
    path: str
    args: Sequence[tuple[str, str]]

    def pages(self, page: int, *, last: int | None, has_next: bool) -> dict[str, str]:
        """Give the links of a page, other parameters kept. `last` is None where it is too far."""
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
    """Give the link to a path."""
    public: str | None = current_app.extensions["settings"].public_url
    if public is not None:
        return public + path
    return f"{request.scheme}://{request.host}{path}" if request.host else path


def link_header(links: Mapping[str, str]) -> dict[str, str]:
    """Give the Link header (RFC 8288) of `links`."""
    return {"Link": ", ".join(f'<{url}>; rel="{rel}"' for rel, url in links.items())}
