"""End a command: with its exit code and, with ``--json``, one line of JSON on stdout, whatever the outcome.

Collects the program's arguments, the command's results and what ended it, and
prints them once, at the end, as an object that `outcome.schema.json` describes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import resources
from typing import Any

import click

from rn50feat import __version__
from rn50feat.cli import streams
from rn50feat.cli.terminal import STOPS, say, write
from rn50feat.errors import OutputError, RN50FeatError

SCHEMA = "outcome.schema.json"


def ending_of(context: click.Context) -> Ending:
    """Return the program's `Ending`."""
    found = context.find_object(Ending)
    assert found is not None
    return found


def pass_ending(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the `Ending` as its first argument."""
    return click.pass_obj(command)


def schema() -> dict[str, Any]:
    """Load the JSON Schema of what the program prints with ``--json``."""
    read: dict[str, Any] = json.loads(resources.files("rn50feat.cli").joinpath(SCHEMA).read_text(encoding="utf-8"))
    return read


class Ending:
    """What is known about a command while it runs: every command gets it, and `watched` prints it."""

    def __init__(self, arguments: Sequence[str]) -> None:
        # Used until the arguments are parsed, and if they cannot be.
        variable = os.environ.get("RN50FEAT_JSON", "").strip().lower() in ("1", "true", "t", "yes", "y", "on")
        self.as_json = variable or "--json" in [*arguments, "--"][: [*arguments, "--"].index("--")]
        self.command: str | None = None
        self.store: str | None = None
        self._started = _now()
        self._code = 0
        self._found: dict[str, Any] = {}

    def add(self, **facts: Any) -> None:
        """Add facts to the object."""
        self._found.update(facts)

    def stop(self, code: int) -> None:
        """Raise the exit code to at least `code`."""
        self._code = max(self._code, code)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Run the program in a block, and end it with its exit code, or with the traceback of a bug."""
        code, message = 0, None
        try:
            with self._signals():
                yield
        except click.ClickException as error:
            _show(error)
            code, message = error.exit_code, error.format_message().partition("\n")[0]  # it may be a whole help text
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except OSError as error:
            if not _raised_by_click(error):
                self._close(1, f"{type(error).__name__}: {error}")
                raise
            streams.abandon_output()
            code, message = 1, f"standard output cannot be written ({error.strerror}): free some space, or redirect it"
            say(f"Error: {message}")
        except BaseException as bug:
            self._close(1, f"{type(bug).__name__}: {bug}")
            raise
        raise SystemExit(self._close(max(code, self._code), message))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """End the process on a signal that stops it, with a line of JSON if one is wanted, whatever it is busy with.

        A thread does that, since Python handles signals only between two
        steps of its own. Commands that stop in an orderly way handle signals
        themselves meanwhile.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        receiver, sender = os.pipe()
        os.set_blocking(sender, False)

        def handle(number: int, _: object) -> None:
            pass  # the thread does it

        def listen() -> None:
            while number := os.read(receiver, 1):
                if signal.getsignal(number[0]) is handle:
                    self._close(128 + number[0], None)
                    os._exit(128 + number[0])

        before = {number: signal.signal(number, handle) for number in STOPS if _ends(number)}
        wakeup = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
        threading.Thread(target=listen, daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            os.close(sender)
            for number, handler in before.items():
                signal.signal(number, handler)

    def note(self, error: RN50FeatError) -> None:
        """Add what a run committed before an error ended it."""
        if error.summary is not None:
            self.add(**error.summary.as_dict())

    def _close(self, code: int, error: str | None) -> int:
        """Print the object, if one is wanted and there is something in it; return the exit code."""
        if not self.as_json or not (code or self._found):  # --help and --version have already printed everything
            return code
        known: dict[str, Any] = {"command": self.command, "version": __version__, "host": socket.gethostname()}
        known |= {"started": self._started, "ended": _now(), "store": self.store, "exit_code": code, "error": error}
        try:
            write(json.dumps({**known, **self._found}) + "\n")
        except OutputError as refused:
            say(f"Error: {refused}")
            return max(code, refused.exit_code)
        except BrokenPipeError:  # the reader is gone
            streams.abandon_output()
            return max(code, 1)
        return code


def _show(error: click.ClickException) -> None:
    """Print an error on one line, where click would print four; a command without any arguments prints its help."""
    if isinstance(error, click.UsageError) and error.ctx and not isinstance(error, click.exceptions.NoArgsIsHelpError):
        message = error.format_message()
        say(f"Error: {message}{'' if message.endswith(('.', '?', ')')) else '.'} See {error.ctx.command_path} --help")
    else:
        error.show()


def _ends(number: int) -> bool:
    """Check whether a signal would end the process: nohup, for example, has SIGHUP ignored."""
    return signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def _raised_by_click(error: OSError) -> bool:
    """Check whether click raised an error, while it printed help."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "click" in trace.tb_frame.f_code.co_filename.split(os.sep)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
