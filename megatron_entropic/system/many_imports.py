"""Importing a large package, faster than Python's garbage collector lets it be; and ending a process that has done so."""

import atexit
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def many_imports() -> Iterator[None]:
    """For the block around imports of thousands of modules: the garbage collector rests.

    While modules are loaded it runs hundreds of times and finds next to nothing: 1 of the 3.6 s in which a rank imports its stack.
    """
    resting = not gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not resting:
            gc.enable()


def end_process(code: int) -> NoReturn:
    """Ends this process with its exit functions called and its output written, but without taking apart what it imported.

    That takes a rank a second, and destructors of groups whose other ranks are gone may wait for them.
    """
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    os._exit(code)
