"""A Redis client that sends all commands of one tick of the event loop in one write.

A single command costs more time in the client than in Redis. So the commands of a tick share one
write to one open connection. While several writes are under way, commands wait for the next write.

    batcher      collects commands, and sends them when the tick ends
    connection   one connection: its batches under way, and their replies
    commands     kinds of commands: how requests become commands, and replies become results
"""

from service.redis_client.batcher import RedisBatcher
from service.redis_client.commands import GET_MANY, Command, Script, digest_of

__all__ = ["GET_MANY", "Command", "RedisBatcher", "Script", "digest_of"]
