"""Signals that ask a run to stop: the handler only notes them, the loop acts where a resumed run can go on."""

import signal
import threading
from types import FrameType, TracebackType

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class StopSignal:
    """While it is entered, stop signals are noted; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.number: int | None = None
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

    @property
    def name(self) -> str:
        """The name of the signal that came."""
        return signal.Signals(self.number).name if self.number else "a signal to another process"

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the handler's arguments are fixed
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
