"""How a process learns that another has failed, while it computes or waits for it.

A collective that a dead process leaves unfinished fails by itself. A process
outside of one (for minutes, while it loads data or evaluates) learns of the others' end here.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading

from lookback.core.faults import cut, sentence, status_of
from lookback.training.parallel.job_store import ERROR, STOP, JobStore, NoLauncherError
from lookback.training.signals import TERMINATED_EXIT_STATUS

ADVICE = (
    "All processes have stopped. If checkpoints were saved, continue with --load_checkpoint_path."
)

_STRANGE = (
    "warning: somebody who does not belong to this run writes to its store, and is ignored. "
    "Horovod's own entries there are not protected: run on a network that strangers cannot reach."
)
_SECONDS_BETWEEN_LOOKS = 1.0
_REFUSALS_OF_A_DEAD_LAUNCHER = 5  # in a row
_SECONDS_TO_END = 3.0
"""How long the main thread may take to end by itself, once another process has failed."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """How this process has to end because others do.

    Attributes:
      status: of its exit.
      text: what to say; "" if there is nothing to say.
    """

    status: int
    text: str = ""

    def report(self) -> None:
        """Prints the text, as the command lines do."""
        if self.text:
            print(f"error: {self.text}", file=sys.stderr, flush=True)


class Watch:
    """Tells the others of an error here, and hears of theirs.

    Without a job store (a launcher that is not horovodrun) it knows nothing and does nothing.
    Without a secret (horovodrun by itself) it hears of the launcher's end only, as anybody on the
    network could write all else. horovodrun then ends the others, and who failed has said why.
    """

    def __init__(self, job_store: JobStore | None) -> None:
        """Starts to listen."""
        self.rank = int(os.environ.get("HOROVOD_RANK", "0"))
        self._job_store = job_store
        self._over = threading.Event()
        self._warned = self.rank != 0
        if job_store is not None:
            threading.Thread(target=self._listen, args=(job_store,), daemon=True).start()

    def close(self) -> None:
        """Stops listening: this process ends by itself."""
        self._over.set()

    def tell(self, error: BaseException) -> None:
        """Leaves word of an error here, unless another process failed first."""
        if self._job_store is None:
            return
        message = sentence(error)
        note = {
            "rank": self.rank,
            "text": cut(f"{type(error).__name__}: {error}") if message is None else message,
            "status": status_of(error),
        }
        try:
            if self._job_store.get(ERROR) is None:
                self._job_store.put(ERROR, note)
        except (NoLauncherError, OSError):
            pass  # then there is nobody to tell

    def failure(self) -> Failure | None:
        """How to end, by what the others and the launcher say; None if they say nothing."""
        if self._job_store is None:
            return None
        try:
            return self._look(self._job_store)
        except (NoLauncherError, OSError):
            return None

    def _look(self, job_store: JobStore) -> Failure | None:
        error, stop = job_store.get(ERROR), job_store.get(STOP)
        if not job_store.secret:
            return None
        if job_store.found_strange and not self._warned:
            self._warned = True
            print(_STRANGE, file=sys.stderr, flush=True)
        if error is not None and error["rank"] != self.rank:
            return Failure(
                error["status"], f"rank {error['rank']} failed: {error['text']}\n{ADVICE}"
            )
        return None if stop is None else Failure(TERMINATED_EXIT_STATUS)

    def _listen(self, job_store: JobStore) -> None:
        refusals = 0
        while not self._over.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                failure = self._look(job_store)
            except NoLauncherError:
                refusals += 1
                if refusals == _REFUSALS_OF_A_DEAD_LAUNCHER:
                    Failure(1, "the launcher has ended, and so does this process.").report()
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                continue
            except OSError:
                continue  # the network; if it stays so, the next collective fails
            refusals = 0
            if failure is None:
                continue
            if not failure.text:  # the training loop saves and ends, anything else just ends
                os.kill(os.getpid(), signal.SIGTERM)
            elif not self._over.wait(_SECONDS_TO_END):
                failure.report()
                os._exit(failure.status)
            return
