"""SIGINT and SIGTERM: the first ends the loop after its step and a checkpoint, the second ends it at once."""

import signal


class Interrupts:
    """A context manager; inside, `asked` names the signal that came, or is None."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.asked: str | None = None
        self._before: dict = {}

    def __enter__(self) -> "Interrupts":
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def _note(self, number: int, frame) -> None:
        self.asked = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
