"""Files written by a thread beside the training: what an epoch leaves, while the next one trains."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType

from gmmvit.building import first_line
from gmmvit.runs.files import uninterrupted
from gmmvit.training.progress import Progress


class Writer:
    """One piece of work at a time in a thread of its own; what follows it runs in the thread that asked for it.

    The work must touch nothing that changes meanwhile, and no GPU. As a context it ends when the work is done, also
    where an error or Ctrl-C came; an error of the work is raised then, after Ctrl-C only reported.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._thread = ThreadPoolExecutor(1, "gmmvit-writer")
        self._work: Future[object] | None = None
        self._after: Callable[[], object] = lambda: None

    def begin(self, work: Callable[[], object], after: Callable[[], object]) -> None:
        """Starts `work`, before which `finish` must have been called; `after` is called once it has succeeded."""
        assert self._work is None
        self._work, self._after = self._thread.submit(work), after

    def look(self) -> None:
        """As `finish` where the work is done; else nothing."""
        if self._work is not None and self._work.done():
            self.finish()

    def look_for_success(self) -> None:
        """As `look`, but an error waits for `finish`."""
        if self._work is not None and self._work.done() and self._work.exception() is None:
            self.finish()

    def finish(self) -> None:
        """Waits for the work, raises its error, calls what follows it."""
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
