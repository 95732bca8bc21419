"""Builds grammars in a process of its own, where what overflows a stack or finds no end takes nothing else with it.

A program: it imports the library and its neighbour alone. Each line on its standard input is a JSON list of a kind and
a text; each on its standard output is a JSON string: what is wrong with that grammar, or nothing.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading

from library import grammar_of, limits  # type: ignore[import-not-found]  # its folder is the program's path
from llguidance import LLMatcher

_STACK = 2**20
"""Bytes: an eighth of what threads have, so that what is built here is built there."""
_MEMORY = 2 * 2**30
"""Bytes of addresses, those of the program itself included."""
_SECONDS = 2
"""Of a processor, for one grammar."""


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    threading.stack_size(_STACK)
    worker = threading.Thread(target=_answer)
    worker.start()
    worker.join()


def _answer() -> None:
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + 1 + _SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        print(json.dumps(_fault(*json.loads(line))), flush=True)


def _fault(kind: str, text: str) -> str:
    try:
        failed, told = LLMatcher.validate_grammar_with_warnings(grammar_of(kind, text), None, limits=limits())
    except Exception as error:
        return str(error)
    return told[0] if failed and told else ""


if __name__ == "__main__":
    main()
