"""`megatron-entropic view` and `watch`: looking at runs, in a browser and on the terminal."""

import argparse
import signal
import threading
import webbrowser
from pathlib import Path
from typing import Any


def add_view(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the command `view`."""
    view = commands.add_parser(
        "view",
        allow_abbrev=False,
        help="look at the recorded rollouts of a run in a browser",
        description="Serves a page about the rollouts of RUN_DIR on this machine: search, all samples of a prompt beside each other, "
        "tokens coloured by what rollout.record_tokens recorded. Ends on Ctrl-C. The run may be in progress; its folder is only read.",
        epilog="Example: megatron-entropic view runs/quickstart",
    )
    view.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    view.add_argument("--port", type=_port, default=0, metavar="PORT", help="port of 127.0.0.1 to serve at; 0, the default: a free one")
    view.add_argument("--no-browser", action="store_true", help="print the page's address and open nothing")
    view.set_defaults(command=_view)


def add_watch(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the command `watch`."""
    watch = commands.add_parser(
        "watch",
        allow_abbrev=False,
        help="watch runs on the terminal while they train",
        description="Shows entropy against target, alpha, reward, log-prob gap, speed, time left and the last warnings of one run or "
        "several, until all are over or Ctrl-C. RUN_DIR need not be there yet. Not on a terminal it prints a line a step.",
        epilog="Example: megatron-entropic watch runs/quickstart runs/grpo",
    )
    watch.add_argument("run_dir", type=Path, nargs="+", metavar="RUN_DIR")
    watch.add_argument("--every", type=_seconds, default=2.0, metavar="SECONDS", help="time between two looks (default 2)")
    watch.add_argument("--once", action="store_true", help="show how the runs stand now, and end")
    watch.set_defaults(command=_watch)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r}: a number of seconds from 0.1 to 3600")
    return seconds


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 0 to 65535")
    return int(text)


def _view(options: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C."""
    from megatron_entropic.observability.viewer.server import Viewer

    _heed_ctrl_c()
    with Viewer(options.run_dir, port=options.port) as viewer:
        print(f"{viewer.url}\nCtrl-C ends it", flush=True)
        if not options.no_browser:
            webbrowser.open(viewer.url)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print()
    return 0


def _watch(options: argparse.Namespace) -> int:
    """Shows the runs until they are over, or Ctrl-C."""
    from megatron_entropic.observability.dashboard.watching import watch

    _heed_ctrl_c()
    try:
        watch(options.run_dir, every=options.every, once=options.once)
    except KeyboardInterrupt:
        print()
    return 0


def _heed_ctrl_c() -> None:
    """A shell script's background job ignores Ctrl-C's signal unless told otherwise; here it always means the end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
