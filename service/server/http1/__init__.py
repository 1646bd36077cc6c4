"""HTTP/1.1 for Hypercorn: several times as fast as its own protocol, and as strict as the RFC.

server            replaces Hypercorn's server of TCP connections
transport         the transport of a connection: writes, pauses, timeouts
connection        the requests of one connection, in order
parser            parses requests with llhttp, and refuses ambiguous requests
request_cycle     one request and its response as ASGI: receive, send
response_writer   serialises a response
error_responses   error responses of the server itself
codings           transfer codings
h11               Hypercorn's own HTTP/1.1, for HTTP1_PARSER=h11
h2                Hypercorn's own HTTP/2
"""

from service.server.http1.config import COMPLETE, ServerConfig
from service.server.http1.h11 import Http1
from service.server.http1.parser import HeaderFields
from service.server.http1.server import Server, install

__all__ = ["COMPLETE", "HeaderFields", "Http1", "Server", "ServerConfig", "install"]
