"""Runs the processes that encode; each of them holds the networks on its own device and makes whole files.

A single process works without starting another. A worker ends by itself when the process that started it is gone, so
that a kill leaves no process behind. The content of a file does not depend on the process that makes it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue
from queue import Empty

import torch

from experiments.data.prepare.emoji import EMOJI, open_emoji
from experiments.data.prepare.encoders import Autoencoder, TextEncoders, encoder_folders
from experiments.data.prepare.encoding import (
    EncodedRows,
    EncodesImages,
    EncodesTexts,
    encode_empty_caption,
    encode_rows,
)
from experiments.data.prepare.image_forms import LatentImages, PixelImages, sizing_of
from experiments.data.prepare.labels import LabelEncoder, with_classes
from experiments.data.prepare.request import NETWORKS, Request
from experiments.data.prepare.shards import SetFolder, ShardTask
from experiments.data.prepare.source import SourceRows, open_source
from experiments.data.prepare.static_words import StaticWords
from experiments.data.prepare.text_columns import CAPTIONS, LABELS
from experiments.errors import EcditError, RunFailedError
from experiments.libraries import library

SECONDS_BETWEEN_LOOKS = 0.2
OnRows = Callable[[int], None]
Report = int | EcditError
"""The number of rows that were done, or the error for which a process cannot go on."""


class ShardEncoder:
    """Holds the source and the networks, which are opened once for many files."""

    def __init__(self, request: Request, device: torch.device) -> None:
        self._request, self._sizing = request, sizing_of(request)
        self._source = open_request(request)
        folders = encoder_folders(request.encoders)
        self._text: EncodesTexts
        if self._source.class_names is not None:
            self._text = LabelEncoder(self._source.class_names)
        elif request.text == "static":
            self._text = StaticWords(request.max_tokens)
        else:
            networks = {name: folders[name] for name in NETWORKS[request.text]}
            self._text = TextEncoders(networks, request.max_tokens, device)
        vae = folders.get("vae")
        self._images: EncodesImages = PixelImages() if vae is None else LatentImages(Autoencoder(vae, device))

    def encode(self, task: ShardTask, on_rows: OnRows) -> EncodedRows:
        """Returns the content of one file."""
        if not task.rows:
            return EncodedRows(encode_empty_caption(self._text), [], "")
        request = self._request
        return encode_rows(
            self._source, task.rows, self._sizing, request.batch_images, self._images, self._text, request.flip, on_rows
        )


def open_request(request: Request) -> SourceRows:
    """Returns the rows of the source that `request` names, with their classes where it asks for labels.

    Raises `ConfigError` for a missing optional dependency of latents and of captions before any other error.
    """
    if request.vae is not None:
        library("datasets")
    if NETWORKS[request.text]:
        library("transformers")
    if request.text == "labels":
        text, column = LABELS, request.label_column
    else:
        text, column = CAPTIONS, request.caption_column
    if request.source == EMOJI:
        source = open_emoji(request)
    else:
        source = open_source(request.source, request.split, request.subset, request.image_column, column, text)
    return with_classes(source) if text is LABELS else source


def encode_shards(
    request: Request,
    tasks: Sequence[ShardTask],
    out: SetFolder,
    num_processes: int,
    first_device: int,
    on_rows: OnRows,
    skip_made: bool = False,
) -> None:
    """Makes and writes the files of `tasks`; `on_rows` is called with the numbers of rows as they are done.

    With `skip_made`, a file that another process of the launch has made by the time of its turn is left as it is.
    Raises the error that a process raised, and `RunFailedError` where one was killed, or where the source cannot be
    read for a fault that may pass.
    """
    if num_processes > 1 and len(tasks) > 1:
        _in_processes(request, tasks, out, min(num_processes, len(tasks)), first_device, on_rows, skip_made)
    elif tasks:
        _encode_all(request, tasks, out, _device(first_device), on_rows, skip_made)


def _encode_all(
    request: Request, tasks: Sequence[ShardTask], out: SetFolder, device: torch.device, on_rows: OnRows, skip_made: bool
) -> None:  # fmt: skip
    encoder = ShardEncoder(request, device)
    for task in tasks:
        if skip_made and out.is_made(task, verify=False):
            on_rows(len(task.rows))
        else:
            out.write(task, encoder.encode(task, on_rows))


def _in_processes(
    request: Request, tasks: Sequence[ShardTask], out: SetFolder, number: int, first_device: int, on_rows: OnRows,
    skip_made: bool,
) -> None:  # fmt: skip
    """Encodes in `number` processes. Each gets its files at the start, as all files take about the same time."""
    context = multiprocessing.get_context("spawn")
    reports: Queue[Report] = context.Queue()
    workers = [
        context.Process(
            target=_work,
            args=(request, tasks[rank::number], out, first_device + rank, os.getpid(), reports, skip_made),
        )
        for rank in range(number)
    ]
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            _take(reports, on_rows)
            _raise_if_lost(workers)
        while _take(reports, on_rows):
            pass
        _raise_if_lost(workers)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _take(reports: Queue[Report], on_rows: OnRows) -> bool:
    """Waits a moment for a report, and says whether there was one."""
    try:
        report = reports.get(timeout=SECONDS_BETWEEN_LOOKS)
    except Empty:
        return False
    if isinstance(report, EcditError):
        raise report
    on_rows(report)
    return True


def _raise_if_lost(workers: Sequence[SpawnProcess]) -> None:
    codes = [worker.exitcode for worker in workers if worker.exitcode]
    if codes:
        raise RunFailedError(
            f"a process that encodes has ended with code {codes[0]}.",
            "If it said nothing, look for its memory limit. The same command continues.",
        )


def _work(
    request: Request, tasks: Sequence[ShardTask], out: SetFolder, device: int, parent: int, reports: Queue[Report],
    skip_made: bool,
) -> None:  # fmt: skip
    """Runs in each worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches all; the first process ends the others
    end_with(parent)
    try:
        _encode_all(request, tasks, out, _device(device), reports.put, skip_made)
    except EcditError as error:
        reports.put(error)


def end_with(parent: int) -> None:
    """Makes this process end at once when the process `parent`, which started it, is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _device(number: int) -> torch.device:
    """Returns the device of process `number`: the accelerators in turn, or the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    return torch.device(accelerator.type, number % torch.accelerator.device_count())
