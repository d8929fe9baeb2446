"""One hour on an accelerator: checks, tests, benchmarks and a study, in parts that can be cut off at any point.

    python docs/benchmarks/accelerator.py --out out/accelerator               # on a machine with an accelerator
    python docs/benchmarks/accelerator.py --out out/accelerator --small       # tried on a processor in minutes

Each stage runs commands with a time limit and writes `STAGE.json` into the folder; then the page, `page.md`, is made
from all stages that are there. The same command skips the stages that have ended and goes on with the next one, and
`--again STAGE` runs one anew. The stages that say most in the fewest minutes come first. The last one is a sweep, which
has the minutes that are left and goes on where it was cut off. Commit the page and the tables of the sweep, not the
folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ECDIT = (sys.executable, "-m", "ecdit_cli")
PYTEST = (sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider")
STUDY = str(HERE / "accelerator_study.yaml")
SECONDS_TO_SAVE = 60
KEPT_LINES = 40
"""The number of last lines of a command that was no JSON which its stage keeps."""
FAILED_TEST = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
TEST_COUNTS = re.compile(r"^(?=.*\d (?:passed|failed|skipped|error))[^\n]* in [\d.:hms() =]+$", re.MULTILINE)
SMALL = ("model=nano", "model.width=48", "train.batch_images=8")
SMALL_STUDY = (
    "model.name=nano", "train.precision=fp32", "train.images=512", "optim.warmup_images=64", "eval.images=32",
    "eval.every_images=256", "checkpoint.every_images=128", "train.batch_images=32",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A part of the hour: commands that run one after the other, and the most minutes that they may take together."""

    name: str
    title: str
    minutes: float
    commands: tuple[tuple[str, ...], ...]


@dataclass
class Result:
    """What a command of a stage came to: `rows` where it printed JSON, else its last lines and what tests failed."""

    command: str
    exit_code: int | None
    seconds: float
    rows: Any = None
    lines: str = ""
    counts: str = ""
    failed: Sequence[str] = ()


def stages(out: Path, small: bool) -> tuple[Stage, ...]:
    """Returns the stages in their order; with `small` every size is one that a processor manages in a minute."""
    layer = ("--tokens", "256", "--width", "48") if small else ("--tokens", "16384", "--width", "1152")
    bf16 = "train.precision=fp32" if small else "train.precision=bf16"
    base = SMALL if small else ("model=B", "train.batch_images=256")
    large = SMALL if small else ("model=L", "routing.num_experts=16", "train.batch_images=128")
    batch = int(base[-1].split("=")[1])
    steps, rounds = ("2", "1") if small else ("9", "9")
    run = str(out / "planned")
    quick = (bf16, f"train.images={6 * batch}", f"optim.warmup_images={batch}", "eval.sample_images=0")
    study = (STUDY, "wandb.mode=disabled", *(SMALL_STUDY if small else ()))
    unit = ("tests/unit/layers/test_gates.py",) if small else ("tests/unit",)
    world = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ecdit_cli", "train")
    return (
        Stage("doctor", "The machine and its libraries", 2, ((*ECDIT, "doctor", "--json"),)),
        Stage("kernels", "Tests of the kernels", 4, (
            (*PYTEST, *(f"tests/unit/layers/test_{name}_kernels.py" for name in ("routed", "product", "block"))),)),
        Stage("layer", "The expert-choice layer beside dense and its peers, also with GELU within its products", 8, (
            (*ECDIT, "bench", "routing", *layer, bf16, "--json"),
            (*ECDIT, "bench", "routing", *layer, bf16, "train.implementation=fused", "--json"))),
        Stage("training", "Training beside dense with as many activated parameters", 8, (
            (*ECDIT, "bench", "train", *base, bf16, "--steps", steps, "--json"),
            (*ECDIT, "bench", "train", *large, bf16, "--steps", steps, "--json"))),
        Stage("compile", "What torch.compile saves in a step, and when it has paid for itself", 6, (
            (*ECDIT, "bench", "compile", *base, bf16, "--steps", steps, "--json"),)),
        Stage("sampling", "Sampling beside dense", 3, (
            (*ECDIT, "bench", "sample", *base, bf16, "--rounds", rounds, "--json"),)),
        Stage("plan", "Memory and time as planned and as measured", 4, (
            (*ECDIT, "plan", *base, *quick, "--json"),
            (*ECDIT, "train", *base, *quick, "wandb.mode=disabled", "--run-dir", run, "--no-progress", "--json"),
            (*ECDIT, "status", run, "--json"))),
        Stage("resume", "Training continues with the same bits", 6, (
            (*PYTEST, "tests/integration/test_resume.py", *(("-k", "stopped_run and 2") if small else ())),)),
        Stage("processes", "Two processes with experts spread over them, on one card if it may be shared", 3, (
            (sys.executable, *world, *base, *quick, "parallel.expert_parallel=2", "wandb.mode=disabled",
             "--run-dir", str(out / "two"), "--no-progress"),)),
        Stage("unit", "All unit tests", 15, ((*PYTEST, "-rfE", *unit),)),
        Stage("study", "A study: three routers, lengths that share a trunk", 600, (
            (*ECDIT, "sweep", *study, "--out", str(out / "study")),
            (*ECDIT, "export", str(out / "study"), "--out", str(out / "study-runs")),
            (*ECDIT, "compare-routing", str(out / "study"), "--out", str(out / "study-tables")))),
    )  # fmt: skip


def run_stage(stage: Stage, seconds: float) -> list[Result]:
    """Runs the commands of a stage within so many seconds; what is still running then gets SIGTERM, and is kept."""
    ends = time.monotonic() + min(seconds, 60 * stage.minutes)
    return [run_command(command, max(1.0, ends - time.monotonic())) for command in stage.commands]


def run_command(command: Sequence[str], seconds: float) -> Result:
    """Runs one command, whose progress goes to the screen; its exit code is None where its time was over."""
    words = " ".join(["ecdit" if word == "ecdit_cli" else word for word in command[1:] if word != "-m"])
    print(f"\n$ {words}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        printed, _ = process.communicate(timeout=seconds)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        process.terminate()  # a sweep stops its runs, which save themselves and continue later
        try:
            printed, _ = process.communicate(timeout=SECONDS_TO_SAVE)
        except subprocess.TimeoutExpired:
            process.kill()
            printed, _ = process.communicate()
        code = None
    result = Result(words, code, round(time.monotonic() - started, 1))
    try:
        result.rows = json.loads(printed)
    except ValueError:
        result.lines = "\n".join(printed.splitlines()[-KEPT_LINES:])
        result.counts = "".join(TEST_COUNTS.findall(printed)[-1:]).strip("= ")
        result.failed = FAILED_TEST.findall(printed)
    return result


def machine() -> dict[str, str]:
    """Returns what the page says of the machine: the device, versions, the commit and the date."""
    import torch

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False
    )
    return {
        "device": torch.get_device_module(device).get_device_name() if device else f"cpu, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def page(out: Path, plan: Sequence[Stage]) -> Iterator[str]:
    """Yields the lines of the page from the stages that have a file."""
    facts = json.loads((out / "machine.json").read_text())
    yield f"# {facts['device']}, {facts['date']}\n"
    yield ", ".join(f"{name} {value}" for name, value in facts.items() if name not in ("device", "date")) + ".\n"
    for stage in plan:
        path = out / f"{stage.name}.json"
        if not path.exists():
            yield f"## {stage.title}\n\nNot run.\n"
            continue
        yield f"## {stage.title}\n"
        for result in (Result(**each) for each in json.loads(path.read_text())):
            end = "its time was over" if result.exit_code is None else f"exit code {result.exit_code}"
            yield f"`{result.command}`: {end}, {result.seconds:g} s\n"
            yield from said(result)


def said(result: Result) -> Iterator[str]:
    """Yields what a command said: a table of its rows, the counts and failures of tests, or its last lines."""
    rows = [result.rows] if isinstance(result.rows, dict) else result.rows
    if result.command.startswith("ecdit doctor"):
        rows = [row for row in rows or () if row["check"] != "folder"]  # a path says nothing to others
    if rows and all(isinstance(row, dict) for row in rows):
        yield from markdown_table(rows)
    elif result.counts:
        yield f"{result.counts}\n"
        yield from (f"- `{name}`" for name in result.failed)
    elif result.lines:
        yield f"```text\n{result.lines}\n```\n"


def markdown_table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yields a table of the plain values of the rows; nested ones stay in the stage's file."""
    names = list(
        dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, dict | list))
    )
    yield "| " + " | ".join(names) + " |"
    yield "|---" * len(names) + "|"
    for row in rows:
        cells = [row.get(name) for name in names]
        shown = [f"{cell:.4g}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in cells]
        yield "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in shown) + " |"
    yield ""


def main() -> int:
    """Runs the stages that have not ended, within the minutes that are given."""
    parser = argparse.ArgumentParser(description="Checks, tests, benchmarks and a study on an accelerator, in parts.")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the results")
    parser.add_argument("--minutes", type=float, default=55, help="the time for everything (default: 55)")
    parser.add_argument("--small", action="store_true", help="sizes that a processor manages in minutes")
    parser.add_argument("--again", action="append", default=[], metavar="STAGE", help="run this stage anew")
    parser.add_argument("--only", action="append", default=[], metavar="STAGE", help="run this stage alone")
    given = parser.parse_args()
    plan = stages(given.out, given.small)
    unknown = {*given.again, *given.only} - {stage.name for stage in plan}
    if unknown:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(each.name for each in plan)}")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "machine.json").write_text(json.dumps(machine()))
    ends, failed = time.monotonic() + 60 * given.minutes, False
    for stage in plan:
        path = given.out / f"{stage.name}.json"
        is_done = path.exists() and stage.name not in given.again
        if is_done or (given.only and stage.name not in given.only):
            continue
        left = ends - time.monotonic()
        if left < 30:
            print(f"{stage.name}: no time is left. The same command goes on here.")
            break
        results = run_stage(stage, left)
        failed |= any(result.exit_code for result in results)
        is_cut_off = stage.name == "study" and results[0].exit_code is None
        path.with_suffix(".part" if is_cut_off else ".json").write_text(json.dumps([asdict(each) for each in results]))
        (given.out / "page.md").write_text("\n".join(page(given.out, plan)))
        print(f"{stage.name}: {[result.exit_code for result in results]}, see {given.out / 'page.md'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
