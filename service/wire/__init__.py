"""One line to a Redis: what a tick of the loop asks of it goes in one write.

A command of its own costs the most on the way, not in Redis. So whoever asks within one tick is
sent together, over one connection that is kept, and whoever comes while that much is on its way
waits for the next write.
"""

from service.wire.kinds import READ, Command, Script, digest_of
from service.wire.wire import Wire

__all__ = ["READ", "Command", "Script", "Wire", "digest_of"]
