"""HTTP/1.1 for Hypercorn: several times as fast as Hypercorn's own, and strict (RFC 9112).

server            replaces Hypercorn's server of TCP connections
transport         the transport of a connection: writes, pauses, timeouts
connection        the requests of one connection, in order
parser            parses requests with llhttp, and refuses ambiguous requests
request_cycle     one request and its response, as ASGI `receive` and `send`
response_writer   serialises a response
error_responses   error responses of the server itself
codings           transfer codings
scope             the ASGI scope
config            Hypercorn's configuration, with additional settings
h11               Hypercorn's own HTTP/1.1 with corrections, for HTTP1_PARSER=h11
h2                Hypercorn's own HTTP/2 with corrections
"""

from service.server.http1.config import COMPLETE, ServerConfig
from service.server.http1.h11 import Http1
from service.server.http1.parser import HeaderFields
from service.server.http1.server import Server, install

__all__ = ["COMPLETE", "HeaderFields", "Http1", "Server", "ServerConfig", "install"]
