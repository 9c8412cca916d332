"""Ctrl-C and SIGTERM as a wish that the training loop looks at between steps."""

import contextlib
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
        """Inside, the first Ctrl-C or SIGTERM only sets `asked`."""

        def ask(number: int, frame: object) -> None:
            if self.asked and not self.patient:
                raise KeyboardInterrupt
            if not self.asked:
                tqdm.write("stopping after this step; the run will be saved")
            self.asked = True

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: nobody can press Ctrl-C here
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
