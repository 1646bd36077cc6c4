"""HTTP/1.1 for Hypercorn, several times as fast as its own, and as strict as the RFC.

server       stands where Hypercorn makes a connection's task, and gives the transport
connection   the bytes of a client, in order: whose turn it is, and for how long
requests     a request from them, by llhttp; what may be doubted is refused
exchange     a request and its answer for the application: receive, send
answers      an answer as bytes: its head, and how its end is told
refusals     what the server says by itself
h11          Hypercorn's own, for HTTP1=h11
h2           Hypercorn's own HTTP/2
"""

from service.http1.config import ServerConfig
from service.http1.h11 import Http1
from service.http1.server import Server, install

__all__ = ["Http1", "Server", "ServerConfig", "install"]
