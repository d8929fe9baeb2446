"""Saves checkpoints in the background while training goes on.

A process copies what it holds to host memory and trains on, while a thread writes the copy. Once every process has
written its shard, which they find out together between two steps, rank 0 gives the checkpoint its name. A run that dies
before that still has the previous checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from experiments.distributed.agreement import everyone, first_trouble
from experiments.errors import StorageError
from experiments.records.run_folder import RunDir
from experiments.training.checkpoint_files import Shapes, ShardReport, TrainingState, abandon, publish, write_shard
from experiments.training.router_states import KEY as ROUTER_STATE

WAIT_SECONDS = 5.0
"""While it waits for the disk, `finish` calls `beat` this often."""


class Saver:
    """Writes the checkpoints of a run, at most one at a time."""

    def __init__(
        self, run_dir: RunDir, config_id: str, shapes: Shapes, keep: int, rank: int, world: int, images_saved: int = 0,
        trunk_images: int | None = None,
    ) -> None:  # fmt: skip
        """Makes the saver; `images_saved` are the images of the checkpoint from which training continues.

        The checkpoint after `trunk_images` is never removed for a newer one.
        """
        self.images_saved = images_saved
        self.run_dir, self.config_id, self.shapes, self.keep = run_dir, config_id, shapes, keep
        self.rank, self.world, self.trunk_images = rank, world, trunk_images
        self._state: dict[str, Any] | None = None
        self._thread: threading.Thread | None = None
        self._written: ShardReport | StorageError | None = None

    @property
    def is_writing(self) -> bool:
        """Says whether this process is still writing its shard."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, state: Mapping[str, Any], snapshot: TrainingState) -> None:
        """Starts to write `snapshot`, taken at `state["images_seen"]`, and returns at once; `finish` comes before."""
        assert self._state is None, "one checkpoint at a time"
        self._state = {
            "config_id": self.config_id,
            **state,
            "optimizer_counters": dict(snapshot.counters),
            "optimizer_states": sorted({key.rpartition("/")[2] for key in snapshot.tensors["optimizer"]}),
            **({"ema_widths": list(snapshot.ema_widths)} if snapshot.ema_widths else {}),
            **({ROUTER_STATE: dict(snapshot.router_state)} if snapshot.router_state else {}),
        }
        # The thread is a daemon, so that a process which ends with an error does not wait for a disk that hangs.
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint", daemon=True)
        self._thread.start()

    def poll(self, anybody_writes: bool) -> None:
        """Publishes the checkpoint once no process writes any more. Raises `StorageError`. Collective."""
        if self._state is not None and not anybody_writes:
            self._publish()

    def finish(self, beat: Callable[[], None] = lambda: None) -> None:
        """Waits until the checkpoint is written and publishes it, calling `beat` meanwhile. Collective."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(WAIT_SECONDS)
            beat()
        if self._state is not None:
            self._publish()

    def _write(self, snapshot: TrainingState) -> None:
        assert self._state is not None
        try:
            self._written = write_shard(self.run_dir, int(self._state["images_seen"]), snapshot, self.rank, self.world)
        except StorageError as error:
            self._written = error

    def _publish(self) -> None:
        """Publishes the checkpoint on rank 0. Raises `StorageError` on all processes where any could not write."""
        state, written = self._state, self._written
        assert state is not None
        # The state is cleared first, so that no later call publishes this checkpoint again when an error is raised
        # below.
        self._state = self._thread = self._written = None
        reports = everyone(written, self.world)
        trouble = next((report for report in reports if isinstance(report, StorageError)), None)
        assert trouble is not None or None not in reports, "a thread ended without a word: its shard is missing"
        if trouble is None and self.rank == 0:
            try:
                shards = [report for report in reports if isinstance(report, ShardReport)]
                publish(self.run_dir, state, self.shapes, shards, self.keep, self.trunk_images)
            except StorageError as error:
                trouble = error
        trouble = first_trouble(trouble, self.world)
        if trouble is not None:
            if self.rank == 0:
                abandon(self.run_dir, int(state["images_seen"]))
            raise trouble
        self.images_saved = int(state["images_seen"])
