"""What asks a run to stop, and how it shows that it is alive."""

import contextlib
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any

BEAT_SECONDS = 1.0
"""Between two signs of life while the host works alone."""


class Signals:
    """What a run shares with its signal handler and its watchdog."""

    def __init__(self):
        self.stop_requested = False
        self.last_beat = time.monotonic()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within, SIGTERM, Ctrl-C and SIGHUP (a terminal was closed, an ssh lost; not
        under nohup) are noted and do nothing else; a second Ctrl-C ends the process
        where it is, as a kill would, within a compile too."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signals.append(signal.SIGHUP)
        before = [signal.signal(number, self._note) for number in signals]
        try:
            yield
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)

    def beat(self) -> None:
        """Work is going on."""
        self.last_beat = time.monotonic()

    def meanwhile(self, work: Callable[[], Any]) -> Any:
        """What `work` gives, on the host, however long it takes: work is going on."""
        found = Future()

        def run() -> None:
            try:
                found.set_result(work())
            except BaseException as error:
                found.set_exception(error)

        # A daemon: a second Ctrl-C need not wait for it.
        threading.Thread(target=run, daemon=True).start()
        while wait([found], timeout=BEAT_SECONDS).not_done:
            self.beat()
        return found.result()

    def _note(self, number: int, _: Any) -> None:
        if number == signal.SIGINT:
            # Python's own comes after a compile, and is an error in the midst of jax.
            signal.signal(number, signal.SIG_DFL)
            text = "stopping after this step, to save it; Ctrl-C again ends at once\n"
            os.write(2, text.encode())
        if number == signal.SIGHUP:
            _print_to_what_is_left()
        self.stop_requested = True


def _print_to_what_is_left() -> None:
    """Has what is printed go nowhere from here on, unless to a file or to a terminal
    that is there still: to print to one that is gone, or to a `tee` that went with it,
    is an error, which would end the run before it is saved."""
    for number in (1, 2):
        with contextlib.suppress(OSError):  # closed before
            kept = os.isatty(number) or stat.S_ISREG(os.fstat(number).st_mode)
            if not kept:
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
