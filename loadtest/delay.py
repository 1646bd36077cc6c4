"""A proxy that simulates a slow network: it delays the server's bytes, in order."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

HOST = "127.0.0.1"


@asynccontextmanager
async def delayed(port: int, seconds: float) -> AsyncIterator[int]:
    """Yield the port of a proxy for `port` that delays responses by `seconds`."""
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.create_task(_forward_both(reader, writer, port, seconds))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forward_both(
    reader: StreamReader, writer: StreamWriter, port: int, seconds: float
) -> None:
    try:
        server_reader, server_writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return writer.transport.abort()
    directions = {
        asyncio.create_task(_forward(reader, server_writer, 0)),
        asyncio.create_task(_forward(server_reader, writer, seconds)),
    }
    try:
        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for direction in directions:
            direction.cancel()
        for stream in (server_writer, writer):
            stream.close()


async def _forward(source: StreamReader, sink: StreamWriter, seconds: float) -> None:
    """Forward each chunk after `seconds`. The delays of chunks overlap; they do not add up."""
    loop = asyncio.get_running_loop()
    delayed_chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        with suppress(OSError):  # the other side has disconnected
            while True:
                due, chunk = await delayed_chunks.get()
                await asyncio.sleep(due - loop.time())
                if not chunk:
                    return
                sink.write(chunk)
                await sink.drain()

    delivering = asyncio.create_task(deliver())
    try:
        while not delivering.done():
            try:
                chunk = await source.read(65_536)
            except OSError:
                chunk = b""
            delayed_chunks.put_nowait((loop.time() + seconds, chunk))
            if not chunk:
                await delivering
    finally:
        delivering.cancel()
