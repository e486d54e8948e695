"""A cell's own process: the ``anatomark`` command, which ends when its benchmark does, even where that is killed."""

from __future__ import annotations

import os
import runpy
import sys
import threading


def main() -> None:
    """Run the command line of ``sys.argv``; standard input is a pipe that its benchmark keeps open."""
    threading.Thread(target=_follow, args=(sys.stdin.fileno(),), daemon=True).start()
    runpy.run_module("anatomark", run_name="__main__")


def _follow(pipe: int) -> None:
    while os.read(pipe, 1024):
        pass
    os._exit(1)  # like a kill: what is written is whole, and the next run goes on from it


if __name__ == "__main__":
    main()
