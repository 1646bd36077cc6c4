"""A TypeScript client that @hey-api/openapi-ts generates from the OpenAPI document.

The packages are in `tests/typescript/package-lock.json`. Without node, or where npm cannot install
them, the test is skipped.
"""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from service.app import create_app
from service.openapi.pages import document
from tests.conftest import Site
from tests.factories import PASSWORD

SOURCE = Path(__file__).parent / "typescript"
TIMEOUT = 240  # seconds


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder."""
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT
    )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the client and of the program that uses it, compiled by `tsc`."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm (Debian: apt install npm)")
    folder = tmp_path_factory.mktemp("typescript") / "client"
    shutil.copytree(SOURCE, folder)
    installed = run(folder, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    if installed.returncode:
        pytest.skip(f"npm cannot install the packages: {installed.stderr[-300:]}")
    app = create_app("testing")
    (folder / "openapi.json").write_text(json.dumps(document(app).schema()))
    tools = folder / "node_modules" / ".bin"
    for command in (
        [f"{tools}/openapi-ts", "-i", "openapi.json", "-o", "client", "--no-log-file"],
        [f"{tools}/tsc", "-p", "."],
    ):
        done = run(folder, *command)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.timeout(3 * TIMEOUT)
async def test_a_typescript_client_compiles_and_works(compiled: Path, site: Site) -> None:
    program = await asyncio.create_subprocess_exec(
        "node", "dist/main.js", site.url, PASSWORD,
        cwd=compiled, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(TIMEOUT):
            output, _ = await program.communicate()
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
    assert (program.returncode, output) == (0, b"ok\n"), output.decode()
