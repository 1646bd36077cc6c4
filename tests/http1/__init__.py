"""HTTP/1.1 of service/server/http1: bytes on a socket, their meaning, and their cost."""
