"""A thread that writes an epoch's files while the next epoch trains."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType

from gmmvit.building import first_line
from gmmvit.runs.files import uninterrupted
from gmmvit.training.progress import Progress


class Writer:
    """Runs one piece of work at a time in its own thread, and its follow-up in the calling thread.

    The work must not touch a GPU or anything that changes meanwhile. As a context manager it waits for the work, even
    after an error or Ctrl-C, and raises the work's error, or only reports it after Ctrl-C.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._thread = ThreadPoolExecutor(1, "gmmvit-writer")
        self._work: Future[object] | None = None
        self._after: Callable[[], object] = lambda: None

    def begin(self, work: Callable[[], object], after: Callable[[], object]) -> None:
        """Starts `work`; call `finish` first. `after` runs once the work has succeeded."""
        assert self._work is None
        self._work, self._after = self._thread.submit(work), after

    def look(self) -> None:
        """Calls `finish` if the work is done, else does nothing."""
        if self._work is not None and self._work.done():
            self.finish()

    def look_for_success(self) -> None:
        """As `look`, but leaves errors to `finish`."""
        if self._work is not None and self._work.done() and self._work.exception() is None:
            self.finish()

    def finish(self) -> None:
        """Waits for the work, raises its error, runs the follow-up."""
        if self._work is None:
            return
        with uninterrupted():
            wait([self._work])
        work, self._work = self._work, None
        work.result()
        self._after()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.finish()
        except Exception as failed:
            if error is None or isinstance(error, Exception):
                raise
            self._progress.notice(first_line(failed))
        finally:
            self._thread.shutdown()
