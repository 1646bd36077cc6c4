"""Make the ASGI scope of a request, with the same keys as Hypercorn's own protocol."""

from typing import TYPE_CHECKING

from hypercorn.typing import ConnectionState, HTTPScope

from service.server.http1.error_responses import as_origin
from service.server.http1.parser import HeaderFields, Reader, read_target

if TYPE_CHECKING:
    from service.server.http1.connection import Connection


def scope_of(reader: Reader, connection: "Connection") -> HTTPScope:
    """Return the scope of the request that `reader` has parsed. Raises RefusedError."""
    line, server = reader.line, connection.server
    parsed = line.parsed
    if not line.target.startswith(b"/"):
        target, fields = as_origin(line.target, reader.headers)
        parsed, reader.headers = read_target(target), HeaderFields(fields)
    return {
        "type": "http",
        "http_version": line.version,
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "method": line.method,
        "scheme": connection.scheme,
        "path": parsed.path,
        "raw_path": parsed.raw_path,
        "query_string": parsed.query,
        "root_path": server.config.root_path,
        "headers": reader.headers,
        "client": connection.client,
        "server": connection.local,
        "state": ConnectionState(server.state.copy()),
        "extensions": {},
    }
