"""The README's code blocks, run as they stand: `sh` in a shell with demo.env, `python` in the environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.config import REPOSITORY
from tests.e2e.conftest import Application

README, RESEARCH = re.split("^## For researchers.*$", (REPOSITORY / "README.md").read_text(), flags=re.MULTILINE)
AFTER = RESEARCH[RESEARCH.index("\n## ") :]
"""What stands between needs no application: tests/policies/test_readme.py runs it."""
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", README + AFTER, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("language", "code"), BLOCKS, ids=[f"{i}-{b[0]}" for i, b in enumerate(BLOCKS)])
def test_a_block_runs_and_answers_as_it_says(app: Application, language: str, code: str) -> None:
    if "redis-cli" in code and shutil.which("redis-cli") is None:
        pytest.skip("needs redis-cli (Debian: redis-tools)")
    code = code.replace(".data/", f"{app.data}/")
    binaries = str(Path(sys.executable).parent)
    env = os.environ | app.env | {"PATH": f"{binaries}:{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", code] if language == "sh" else [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert '"error"' not in done.stdout, done.stdout
    for line in re.findall(r"^# (\S.*)$", code, re.MULTILINE):
        expected = re.sub(r"\d\.\d+", "0", line.rstrip(". "))
        for part in expected.split("..."):
            assert part.strip() in re.sub(r"\d\.\d+", "0", done.stdout), f"{part!r} not in {done.stdout!r}"


def test_the_readme_has_blocks_of_both_kinds() -> None:
    assert {language for language, _ in BLOCKS} == {"sh", "python"}
