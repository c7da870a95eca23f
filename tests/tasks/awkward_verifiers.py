"""Verifiers as users may write them, for the processes of test_verification.py: the response says what the verifier is to do."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_entropic.tasks import Problem


class Awkward:
    def __init__(self, options: Mapping[str, Any], seed: int) -> None:
        self.options, self.seed = options, seed

    def score(self, problem: Problem, response: str) -> Any:
        word, _, value = response.partition(" ")
        if word == "compute":  # in C, where no Python exception reaches
            return 9**9**9 > 0
        if word == "swallow":
            while True:
                try:
                    sum(range(10_000))
                except BaseException:  # noqa: BLE001 - as careless as they come
                    continue
        if word == "wait":
            time.sleep(float(value))
            return 1.0
        if word == "fill":
            return float(len(b"x" * (1 << 40)))
        if word == "raise":
            raise KeyError(f"no\nsuch {value}")
        if word == "exit":
            sys.exit(int(value))
        if word == "signal":
            os.kill(os.getpid(), int(value))
            time.sleep(5)
        if word == "interrupt":
            raise KeyboardInterrupt
        if word == "cancel":
            raise asyncio.CancelledError
        if word == "close":
            for descriptor in value.split():
                os.close(int(descriptor))
            return 1.0
        if word == "close_all":
            os.closerange(0, 1024)
            time.sleep(float(value))
            return 1.0
        if word == "close_streams":
            for stream in (sys.stdin, sys.stdout, sys.stderr):
                stream.close()
            return 1.0
        if word == "leave":  # an end that comes after the answer's verdict
            threading.Timer(float(value), os._exit, [9]).start()
            return 1.0
        if word == "fork":
            child = os.fork()
            if child:
                os.waitpid(child, 0)
            return 1.0
        if word == "scribble":
            for descriptor in range(3, 64):
                with contextlib.suppress(OSError):
                    os.write(descriptor, b"what is this\n")
            return 1.0
        if word == "read":
            return float(sys.stdin.read() == "")
        if word == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if word == "print":
            print("a verifier talks", flush=True)
            return 1.0
        if word == "spawn":
            child = subprocess.Popen(["sleep", "600"])
            Path(problem.data["pid_file"]).write_text(str(child.pid))
            time.sleep(600)
        if word == "return":
            return {"none": None, "two": 2.0, "nan": float("nan"), "true": True, "half": 0.5, "text": "1.0"}[value]
        if word == "echo":
            return float(problem.data["wanted"] == value and problem.prompt == self.options["prompt"] and self.seed == 7)
        return float(os.getpid() == int(value))


def make_awkward(options: Mapping[str, Any], seed: int) -> Awkward:
    if options.get("unmakeable"):
        raise ValueError("the answer key is missing")
    return Awkward(options, seed)
