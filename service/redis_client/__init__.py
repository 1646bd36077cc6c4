"""A Redis client that sends all commands of one tick of the event loop in one write.

A single command costs most of its time in the client, not in Redis. So the commands of a tick go
together over one connection that stays open. While several writes are under way, commands wait for
the next write.

    batcher      collects commands, and sends them when the tick ends
    connection   one connection: what it sent, and the replies that it reads
    commands     kinds of commands: how a batch of them is sent, and how replies are read
"""

from service.redis_client.batcher import RedisBatcher
from service.redis_client.commands import GET_MANY, Command, Script, digest_of

__all__ = ["GET_MANY", "Command", "RedisBatcher", "Script", "digest_of"]
