"""The mirror beside a W&B server: what it sends, what it leaves out on resumption, and what an outage costs."""

from __future__ import annotations

import logging

import pytest
import wandb

from experiments.records.wandb_mirror import start_mirror
from experiments.records.writer import RecordWriter


def test_with_a_key_rows_reach_the_server_and_a_resumption_sends_only_what_is_new(
    wandb_server, run_dir, make_record, make_step
):
    record = make_record("wandb.mode=auto")
    writer = RecordWriter.open(run_dir, record, 0, start_mirror)
    for seen in (32, 64, 96):
        writer.step(make_step(seen))
    writer.close()
    wandb.teardown()
    assert sorted(set(wandb_server.steps)) == [32, 64, 96]

    wandb_server.steps, wandb_server.last_step = [], 64  # the last process was killed before its last row was sent
    writer = RecordWriter.open(run_dir, record, 96, start_mirror)
    writer.step(make_step(128))
    writer.close()
    wandb.teardown()
    assert sorted(set(wandb_server.steps)) == [96, 128]


@pytest.mark.parametrize("outage", ["answers an error", "answers nothing"])
def test_an_outage_costs_one_line_and_training_waits_for_no_answer(
    outage, wandb_server, run_dir, make_record, make_step, monkeypatch, caplog, capfd
):
    """A server that answers nothing until the test is over would hold up whoever waits for it."""
    monkeypatch.setattr("experiments.records.wandb_mirror.FINISH_TIMEOUT_SECONDS", 0.5)
    writer = RecordWriter.open(run_dir, make_record("wandb.mode=online"), 0, start_mirror)
    if outage == "answers an error":
        wandb_server.down = True
    else:
        wandb_server.answering.clear()
    for seen in range(32, 32 * 201, 32):
        writer.step(make_step(seen))
    writer.status("done", 6400)
    writer.close()
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "The run's folder has every row" in line
    assert len(run_dir.read_rows(run_dir.steps).rows) == 200
    assert capfd.readouterr() == ("", "")
