"""Records the end of a run: whatever ends training, the status states it and the files are closed.

Most ends are exceptions of the loop. A process that waits in a collective for a lost one raises none; the watchdog
ends it, and records the end from its own thread before it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from experiments.distributed.rendezvous import Meeting
from experiments.distributed.watchdog import lost_process
from experiments.errors import EcditError, PluginError, RunFailedError, StorageError
from experiments.out_of_memory import out_of_memory
from experiments.records.record_types import State
from experiments.records.run_lock import keep_record
from experiments.records.writer import RecordWriter
from experiments.training.engine import is_lost_process


@contextmanager
def recorded_end(
    status: Callable[[State, str | None], None],
    writer: RecordWriter | None,
    meeting: Meeting,
    warn: Callable[[str], None],
) -> Iterator[None]:
    """Encloses the training loop and records how it ends; `status` takes the state and its reason.

    `writer` is None on all ranks but 0. `warn` is called where `run.json` had to be written again.
    """

    def record(state: State, reason: str) -> None:
        with suppress(StorageError):  # on a full disk the error that ended the run matters more
            status(state, reason)

    def close() -> None:
        if writer is not None:
            with suppress(StorageError):  # the disk is full or the folder was removed
                if (done := keep_record(writer.run_dir, writer.record)) is not None:
                    warn(done)
            writer.close()

    def lost(reason: str) -> None:
        record("failed", reason)
        close()

    try:
        with meeting.ending(lost):
            yield
    except EcditError as error:
        record("failed", str(error))
        if isinstance(error, PluginError):
            # Before a run begins, a broken plugin is a mistake of the user (exit code 2). Now it has ended a run that
            # had begun, which is a failed run (exit code 1) like any other.
            raise RunFailedError(error.message, error.hint) from error
        raise
    except KeyboardInterrupt:
        record("interrupted", "SIGINT twice: not saved since the last checkpoint")
        raise
    except Exception as error:
        if is_lost_process(error):
            record("failed", str(lost_process()))
            raise lost_process() from error
        if (short := out_of_memory(error)) is not None:
            record("failed", str(short))
            raise short from error
        record("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        close()
