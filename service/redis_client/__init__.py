"""A Redis client that sends all commands of one tick in one write.

A tick is one iteration of the event loop. A separate write for a command costs more time in the
client than the command costs in Redis. So the commands of a tick share one write (a batch) to one
connection. While MAX_UNANSWERED_BATCHES have no reply, commands wait for the next batch.

    batcher      collects requests, and sends them at the end of the tick
    connection   one connection, the batches that were sent on it, and their replies
    commands     kinds of requests: their conversion to commands, and of replies to results
"""

from service.redis_client.batcher import RedisBatcher
from service.redis_client.commands import GET_MANY, Command, Script, digest_of

__all__ = ["GET_MANY", "Command", "RedisBatcher", "Script", "digest_of"]
