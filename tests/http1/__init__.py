"""HTTP/1.1, as service/http1 speaks it: bytes on a socket, what they mean, and what they cost."""
