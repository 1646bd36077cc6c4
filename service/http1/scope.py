"""A request as ASGI describes it: what Hypercorn's own protocol gives an application, too."""

from typing import TYPE_CHECKING
from urllib.parse import unquote

from hypercorn.typing import ConnectionState, HTTPScope

from service.fields import Fields
from service.http1.refusals import as_origin
from service.http1.requests import Reader

if TYPE_CHECKING:
    from service.http1.connection import Connection


def scope_of(reader: Reader, connection: "Connection") -> HTTPScope:
    """Describe the request that was read."""
    target, server = reader.target, connection.server
    if not target.startswith(b"/"):
        target, fields = as_origin(target, reader.headers)
        reader.headers = Fields(fields)
    raw_path, _, query = target.partition(b"?")
    path = raw_path.decode()
    return {
        "type": "http",
        "http_version": reader.version,
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "method": reader.method,
        "scheme": connection.scheme,
        "path": unquote(path) if "%" in path else path,
        "raw_path": raw_path,
        "query_string": query,
        "root_path": server.config.root_path,
        "headers": reader.headers,
        "client": connection.client,
        "server": connection.local,
        "state": ConnectionState(server.state.copy()),
        "extensions": {},
    }
