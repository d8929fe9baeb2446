"""Mirrors a run's rows to Weights & Biases. The run folder is authoritative, and a failure here cannot stop a run.

The keys in W&B are these. The fields of a `StepRow` keep their names. An `EvalRow` appears under the name of its metric
(`val_loss`), under `ema/val_loss` for averaged weights, or under `ema@0.1/...` for a reconstructed average. A
`RoutingRow` appears as `routing/layer3/entropy`, `.../load_entropy`, `.../dropped_share`, and as the histograms
`.../load` and `.../experts_per_token`. The last part ends in `_same_t` where all images of a batch have the same t, as
in sampling. Every logged row carries the three x-axes `images_seen` (the default, and W&B's own step), `flops` and
`seconds`.

A value under a metric's name does not say how it was measured. The lines of evals.jsonl and routing.jsonl are therefore
also logged as text under `rows/evals` and `rows/routing`, which W&B's pages do not show. W&B replaces a section of the
settings by the parameter of a sweep that has its name (`model: nano`), so that all settings are also one text under
`resolved_config`. These, and `peak_memory_gib` and `reason` of the summary, suffice to restore a run
(`analysis/wandb_runs.py`).

wandb is imported inside functions because the import takes half a second, which a run without it should not pay.
`writer.py` decides what is written, and when.
"""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from experiments.errors import ConfigError
from experiments.records.record_types import EvalRow, RoutingRow, RunRecord, State, StepRow
from experiments.records.run_folder import RunDir

Row = StepRow | RoutingRow | EvalRow
Mode = Literal["online", "offline", "disabled"]

INIT_TIMEOUT_SECONDS = 10.0
FINISH_TIMEOUT_SECONDS = 30.0
MAX_HISTOGRAM_BINS = 512
EVAL_LINES = "rows/evals"
ROUTING_LINES = "rows/routing"
RESOLVED = "resolved_config"
"""The key of the settings as JSON; no parameter of a sweep has this name, since no setting has it."""
DEFAULT_PROJECT = "ecdit"

talk = logging.getLogger(__name__)


def start_mirror(record: RunRecord, run_dir: RunDir) -> Mirror | None:
    """Starts the mirror that the `wandb` section of `record`'s config asks for; returns None when it is disabled.

    The function prompts for nothing and prints nothing to stdout. If W&B does not answer in time, the mirror is
    offline; if it cannot start at all, the function returns None. Either logs one line. Raises `ConfigError` when
    `wandb.mode` is `online` and there is no key.
    """
    mode = _decide_mode(record.config["wandb"]["mode"])
    if mode == "disabled":
        return None
    ways: list[Mode] = ["online", "offline"] if mode == "online" else ["offline"]
    for way in ways:
        try:
            return Mirror(_init(record, run_dir, way), record)
        except Exception as error:  # whatever a server, a proxy or a full disk does: training goes on
            instead = f"offline, in {run_dir.wandb}" if way == "online" else "without a mirror"
            talk.warning("W&B does not start %s (%s). The run goes on %s.", way, one_line(error), instead)
            _tear_down()
    return None


def mirror_id(record: RunRecord) -> str:
    """Returns W&B's id of a run, made of its settings and its first start, so that a resumed run continues it.

    An id of the settings alone would merge two runs of one config, and W&B never accepts the id of a deleted run again.
    """
    start = hashlib.sha256(f"{record.created_at} {record.host}".encode()).hexdigest()
    return f"{record.config_id}-{start[:6]}"


class Mirror:
    """Logs to one W&B run. A failure ends the mirror with one line of log, but never the training run."""

    def __init__(self, run: Any, record: RunRecord) -> None:
        """Sets up the x-axes of `run`, a started `wandb.Run`."""
        self._run = run
        self._flops_per_image = record.train_flops_per_image
        self._next_step: int = run.starting_step
        self._seconds: float | None = None
        self._lines: dict[str, str] = {}
        self._lines_at = -1
        for axis in ("images_seen", "flops", "seconds"):
            run.define_metric(axis)
        run.define_metric("*", step_metric="images_seen")
        for lines in (EVAL_LINES, ROUTING_LINES):
            run.define_metric(lines, hidden=True, summary="none")

    def row(self, row: Row) -> None:
        """Logs one row; rows must come in order of images_seen. Those with the same value become one row in W&B."""
        if isinstance(row, StepRow):
            self._seconds = row.seconds
            self._log(row.images_seen, row.model_dump(exclude_none=True))
        elif isinstance(row, EvalRow):
            width = f"@{row.settings['ema_width']:g}" if "ema_width" in row.settings else ""
            prefix = f"ema{width}/" if row.weights == "ema" else ""
            self._log(row.images_seen, {prefix + row.metric: row.value, **self._with_line(EVAL_LINES, row)})
        else:
            self._log(row.images_seen, {**_routing_values(row), **self._with_line(ROUTING_LINES, row)})

    def images(self, name: str, path: Path, images_seen: int) -> None:
        """Logs the image file `path` under `name`."""
        import wandb

        try:
            image = wandb.Image(str(path))
        except Exception as error:
            self._give_up(error)
        else:
            self._log(images_seen, {name: image})

    def close(self, state: State, **summary: float | str | None) -> None:
        """Finishes the W&B run with the exit code for `state`, and waits at most half a minute for the upload.

        Values of `summary` (`peak_memory_gib`, `reason`, `balance_loss`) that are not None go into the run's summary.
        """
        run, self._run = self._run, None
        if run is None:
            _tear_down()
            return
        try:
            run.summary.update({name: value for name, value in summary.items() if value is not None})
            if state == "interrupted":
                run.mark_preempting()
            run.finish(exit_code=0 if state == "done" else 1)
        except Exception as error:
            self._give_up(error)
            _tear_down()

    def _with_line(self, name: str, row: EvalRow | RoutingRow) -> dict[str, str]:
        """Returns all lines of this kind at the row's images_seen, since each logged value replaces the one before."""
        # W&B keeps one value for each key and step, so the last of several rows at a step must hold all of their lines.
        if row.images_seen != self._lines_at:
            self._lines, self._lines_at = {}, row.images_seen
        self._lines[name] = self._lines.get(name, "") + row.model_dump_json(exclude_none=True) + "\n"
        return {name: self._lines[name]}

    def _log(self, images_seen: int, values: dict[str, Any]) -> None:
        """Logs `values` with the x-axes, but skips steps below W&B's last one (of a resumed run), which it rejects."""
        if self._run is None or images_seen < self._next_step:
            return
        self._next_step = images_seen
        axes = {"images_seen": images_seen, "flops": float(images_seen) * self._flops_per_image}
        if self._seconds is not None:
            axes["seconds"] = self._seconds
        try:
            self._run.log({**axes, **values}, step=images_seen)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        talk.warning("W&B stopped (%s). The run's folder has every row.", one_line(error))


def _decide_mode(wanted: Mode | Literal["auto"]) -> Mode:
    """Returns the mode to start in. `auto` follows WANDB_MODE or W&B's settings, else is online if there is a key."""
    if wanted == "disabled" or wanted == "offline":
        return wanted
    try:
        configured, has_key = ask_wandb(wanted)
    except Exception as error:  # a malformed key, an empty WANDB_MODE
        talk.warning("W&B cannot read its own settings (%s). The run goes on offline.", one_line(error))
        return "offline"
    if wanted == "online" and not has_key:
        raise ConfigError("wandb.mode is online, but W&B has no key.", "Run `wandb login`, or set wandb.mode=auto.")
    if configured == "disabled":
        return "disabled"
    return "online" if has_key else "offline"


def ask_wandb(wanted: Literal["auto", "online"]) -> tuple[str, bool]:
    """Returns W&B's own mode (environment, settings file) and whether it has a key (those, netrc), without a prompt."""
    import wandb

    asked = wandb.Settings(silent=True, mode="online") if wanted == "online" else wandb.Settings(silent=True)
    configured = wandb.setup(asked).settings.mode
    if configured in ("disabled", "offline", "dryrun"):  # asking for the key would only warn
        return configured, False
    return configured, wandb.login(prompt=False, verify=False)


def project_of(given: str | None) -> str:
    """Returns the project: `given`, else that of WANDB_PROJECT or of W&B's settings file, else `DEFAULT_PROJECT`.

    W&B looks up the entity in the same way by itself, but its own default project is `uncategorized`.
    """
    import wandb

    own = wandb.setup(wandb.Settings(silent=True)).settings  # quiet also in what is said outside of a run
    return given or own.project or DEFAULT_PROJECT


def _init(record: RunRecord, run_dir: RunDir, mode: Mode) -> Any:
    import wandb

    settings = record.config["wandb"]
    facts = record.model_dump(mode="json", exclude={"config"}, exclude_none=True)
    return wandb.init(
        mode=mode,
        dir=str(run_dir.path),
        project=project_of(settings["project"]),
        entity=settings["entity"],
        group=settings["group"] or record.sweep,
        name=record.name,
        id=mirror_id(record),
        resume="allow",
        reinit="create_new",
        job_type="train",
        tags=[record.config["model"]["name"], record.config["routing"]["name"]],
        config={**record.config, **facts, RESOLVED: json.dumps(record.config, ensure_ascii=False)},
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_TIMEOUT_SECONDS,
            finish_timeout=FINISH_TIMEOUT_SECONDS,
            finish_timeout_raises=True,
            disable_git=True,  # run.json has the commit and the versions
            disable_code=True,
            x_save_requirements=False,
            x_disable_stats=mode == "offline",  # a second process beside training, for charts that need a server
        ),
    )


def _routing_values(row: RoutingRow) -> dict[str, Any]:
    import wandb

    suffix = "_same_t" if row.condition == "same_t" else ""
    prefix = f"routing/layer{row.layer}/"
    values: dict[str, Any] = {
        f"{prefix}{name}{suffix}": getattr(row, name) for name in ("entropy", "load_entropy", "dropped_share")
    }
    for name in ("load", "experts_per_token"):
        shares = getattr(row, name)
        if len(shares) <= MAX_HISTOGRAM_BINS:
            bins = list(range(len(shares) + 1))
            values[f"{prefix}{name}{suffix}"] = wandb.Histogram(np_histogram=(shares, bins))
    return values


def _tear_down() -> None:
    """Ends W&B's service process, so that neither a failed run id nor a broken pipe affects a later start."""
    import wandb

    with suppress(Exception, SystemExit):
        wandb.teardown()


def one_line(error: Exception) -> str:
    """Returns the message of an error on one line of at most 300 characters, or the name of its class."""
    return " ".join(str(error).split())[:300] or type(error).__name__
