"""HTTP/1.1 for Hypercorn, several times as fast as its own, and as strict as the RFC.

server            replaces Hypercorn's server of TCP connections
transport         the transport of a connection: writes, pauses, timeouts
connection        the requests of a client, in order
parser            a request from bytes, by llhttp; a doubtful one is refused
request_cycle     one request and its response as ASGI: receive, send
response_writer   a response as bytes
error_responses   responses of the server itself
codings           transfer codings
h11               Hypercorn's own HTTP/1.1, for HTTP1_PARSER=h11
h2                Hypercorn's own HTTP/2
"""

from service.http1.config import ServerConfig
from service.http1.h11 import Http1
from service.http1.server import Server, install

__all__ = ["Http1", "Server", "ServerConfig", "install"]
