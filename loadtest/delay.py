"""A network that takes its time: whatever the server says arrives later, and in order."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

HOST = "127.0.0.1"


@asynccontextmanager
async def delayed(port: int, seconds: float) -> AsyncIterator[int]:
    """Give a port behind which is another one, so much later."""
    carried: set[asyncio.Task[None]] = set()

    def accept(reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.create_task(_carry_both(reader, writer, port, seconds))
        carried.add(task)
        task.add_done_callback(carried.discard)

    server = await asyncio.start_server(accept, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in carried:
            task.cancel()
        await asyncio.gather(*carried, return_exceptions=True)


async def _carry_both(
    reader: StreamReader, writer: StreamWriter, port: int, seconds: float
) -> None:
    try:
        far, back = await asyncio.open_connection(HOST, port)
    except OSError:
        return writer.transport.abort()
    ways = {
        asyncio.create_task(_carry(reader, back, 0)),
        asyncio.create_task(_carry(far, writer, seconds)),
    }
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        for end in (back, writer):
            end.close()


async def _carry(source: StreamReader, sink: StreamWriter, seconds: float) -> None:
    """Carry chunks as they come, each so much later: what follows does not wait for it twice."""
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def arrive() -> None:
        with suppress(OSError):  # whoever was there has gone
            while True:
                due, chunk = await under_way.get()
                await asyncio.sleep(due - loop.time())
                if not chunk:
                    return
                sink.write(chunk)
                await sink.drain()

    arriving = asyncio.create_task(arrive())
    try:
        while not arriving.done():
            try:
                chunk = await source.read(65_536)
            except OSError:
                chunk = b""
            under_way.put_nowait((loop.time() + seconds, chunk))
            if not chunk:
                await arriving
    finally:
        arriving.cancel()
