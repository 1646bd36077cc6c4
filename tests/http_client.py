"""HTTP for tests: requests as bytes over a socket, and the check of an error response."""

import asyncio

import httpx

from tests.conftest import Site

TIMEOUT = 60  # seconds: for any response, also on a busy machine


async def send_raw(
    site: Site, request: bytes, *, ends: bool = False
) -> tuple[int, dict[str, str], bytes]:
    """Send bytes unchanged; return status, headers and body of the first response.

    ends: close the sending side after the bytes.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    try:
        async with asyncio.timeout(TIMEOUT):
            writer.write(request)
            if ends:
                writer.write_eof()
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")[:-2]
            headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
            length = int(headers.get("content-length", "0"))
            body = b"" if request.startswith(b"HEAD") else await reader.readexactly(length)
    finally:
        writer.close()
    return int(lines[0].split()[1]), headers, body


def assert_problem(response: httpx.Response, status: int, error: str) -> None:
    """Assert that a response is a problem document (RFC 9457) with this status and error."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    body = response.json()
    assert list(body)[:6] == ["type", "title", "status", "detail", "error", "message"]
    assert (body["status"], body["error"]) == (status, error)
    assert body["detail"] == body["message"]
    assert body["request_id"] == response.headers["X-Request-ID"]
