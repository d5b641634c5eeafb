"""Signals that ask a run to stop: while it trains they are only noted, and the loop acts where a resumed run can go on."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class Interrupted(Exception):
    """The run was asked to stop; what is to be saved is on disk."""


class StopSignal:
    """While it is entered, a stop signal ends the run: at once where nothing is to be saved, else when the loop sees it.

    A second Ctrl-C interrupts without waiting for anything.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._is_only_noted = False
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None  # which Lightning turns into an exit without a word

    @contextmanager
    def only_noted(self) -> Iterator[None]:
        """Inside, somebody looks at `number`; what comes too late for that is for `raise_if_noted`."""
        self._is_only_noted = True
        try:
            yield
        finally:
            self._is_only_noted = False

    def raise_if_noted(self) -> None:
        """Stop, if a signal came that nobody has acted on."""
        if self.number is not None:
            raise Interrupted(f"{self.name} after the training")

    @property
    def name(self) -> str:
        """The name of the signal that came."""
        return signal.Signals(self.number).name if self.number else "a signal to another process"

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the handler's arguments are fixed
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        if not self._is_only_noted:
            raise Interrupted(f"{self.name} while nothing was to be saved")
