"""Ctrl-C, SIGTERM and a closed terminal as a wish that the training loop looks at between steps."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

WORDS = "stopping after this step; the run will be saved"


def _say(words: str) -> None:
    """A line on stderr without a lock or a buffer: the handler may stand in the middle of what holds them."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # no stderr, a closed terminal, a closed stream
        start = "\n" if sys.stderr.isatty() else ""  # below the bar
        os.write(sys.stderr.fileno(), f"{start}{words}\n".encode())


class StopRequest:
    """Whether someone asked this process to stop.

    Args:
        patient: let a second Ctrl-C be: torchrun passes on what the terminal has sent already. Otherwise it interrupts
            at once.
    """

    def __init__(self, patient: bool = False) -> None:
        self.asked, self.patient = False, patient

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the first Ctrl-C only sets `asked`.

        So does every SIGTERM (make and timeout send two), and every SIGHUP, unless it is ignored (nohup).
        """
        owner = os.getpid()

        def ask(number: int, frame: object) -> None:
            if os.getpid() != owner:  # a loading process in its first moments
                return
            first, self.asked = not self.asked, True
            if first:
                _say(WORDS)
            elif not self.patient and number == signal.SIGINT:
                raise KeyboardInterrupt

        wanted = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            wanted.append(signal.SIGHUP)
        try:
            before = {number: signal.signal(number, ask) for number in wanted}
        except ValueError:  # not in the main thread: nobody can press Ctrl-C here
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
