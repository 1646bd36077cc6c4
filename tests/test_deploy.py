"""The files of `deploy/` are valid for the programs that read them."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from service.config import Production

DEPLOY = Path(__file__).parent.parent / "deploy"
UNIT = DEPLOY / "octavo.service"
EXPECTED = {
    "Type": "exec",
    "ExecReload": "/bin/kill -HUP $MAINPID",
    "KillMode": "mixed",  # the supervisor stops its workers
    "Restart": "on-failure",
    "OOMPolicy": "continue",
    "UMask": "0077",
    "LogsDirectoryMode": "0700",
    "PrivateTmp": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
}


def directives() -> Mapping[str, str]:
    """Return the directives of the unit; the last of several with the same name."""
    lines = UNIT.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def test_the_unit_has_the_directives_that_serving_needs() -> None:
    present = directives()
    assert {name: present.get(name) for name in EXPECTED} == EXPECTED
    assert int(present["LimitNOFILE"]) >= 65_536
    fields = Production.model_fields
    seconds = fields["drain_seconds"].default + fields["grace_seconds"].default + 5
    assert int(present["TimeoutStopSec"]) > seconds


def test_systemd_accepts_the_unit_and_rates_it_safe(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed; the test above checks the directives")
    text = UNIT.read_text(encoding="utf-8")
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("/opt/octavo/.venv/bin/octavo", sys.executable), encoding="utf-8")
    for words in (["verify"], ["security", "--offline=true", "--threshold=20"]):
        done = subprocess.run(
            [analyze, *words, str(unit)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Unknown" not in done.stderr
