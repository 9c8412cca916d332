"""Ctrl-C, SIGTERM and a closed terminal as a wish that the training loop looks at between steps."""

import contextlib
import os
import signal
from collections.abc import Iterator

from tqdm import tqdm


class StopRequest:
    """Whether someone asked this process to stop.

    Args:
        patient: let further signals be: torchrun passes on what the terminal has sent already. Otherwise a second one
            interrupts at once.
    """

    def __init__(self, patient: bool = False) -> None:
        self.asked, self.patient = False, patient

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the first Ctrl-C or SIGTERM only sets `asked`; so does every SIGHUP, unless it is ignored (nohup)."""
        owner = os.getpid()

        def ask(number: int, frame: object) -> None:
            if os.getpid() != owner:  # a loading process: the terminal's signal came to this one too, which ends it
                return
            first, self.asked = not self.asked, True
            if first:
                with contextlib.suppress(OSError):  # a closed terminal takes no words
                    tqdm.write("stopping after this step; the run will be saved")
            elif not self.patient and number != signal.SIGHUP:
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
