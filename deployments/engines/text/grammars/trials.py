"""The process in which grammars are tried, from the side of the engine."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from pathlib import Path

_PROGRAM = Path(__file__).with_name("trial.py")
_PATIENCE_S = 30.0
"""Far beyond the processor time that a trial may take, on a machine that has none to spare."""
TOO_COMPLEX = "it takes more time, memory or depth to build than a grammar may; make it simpler"


class Trials:
    """Tries grammars one after another; from one thread at a time. The process begins with the first."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def fault(self, kind: str, text: str) -> str:
        """What is wrong with a grammar; nothing where it can be built."""
        for _ in range(2):  # it may have ended between two grammars, by whoever frees memory
            process = self._running()
            answer = self._ask(process, json.dumps([kind, text]))
            if answer is not None:
                return answer
            code = process.wait()
            self.close()
            if code not in (0, -15):
                break
        return TOO_COMPLEX

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            process.wait()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            # -E: what the environment sets for this program, a profiler for instance, is not meant for that one.
            self._process = subprocess.Popen(
                [sys.executable, "-E", str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
            if self._read(self._process) != "ready":
                self.close()
                raise RuntimeError("the process that tries grammars does not start")
        return self._process

    def _ask(self, process: subprocess.Popen[str], line: str) -> str | None:
        """Its answer; None where it ended, or was ended for saying nothing."""
        assert process.stdin is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except OSError:
            return None
        return self._read(process)

    @staticmethod
    def _read(process: subprocess.Popen[str]) -> str | None:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], _PATIENCE_S)
        line = process.stdout.readline() if ready else ""
        if not line:
            process.kill()
            return None
        answer: str = json.loads(line)
        return answer
