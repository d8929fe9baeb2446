"""Generated hostile input: values of settings, sweep files, and damage to the records of a run.

Everything is drawn from a `random.Random`, so that a case is made again from its number and the seed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

VALUES: tuple[str, ...] = (
    "0", "-1", "1", "2.5", "1e300", "-1e300", "1e-320", "1e12", "1000000007", "9223372036854775808", "1" + "0" * 400,
    "inf", "-inf", "nan", "1_000", "٣", "0x10", "True", "None", "null", "", " ", "same", "batch", "auto", "nano", "M",
    "[1,2]", "{'a': 1}", "{'a': {'b': {'c': 1}}}", "a=b=c", "'", '"', "$\\frac{$", "[bold]", "[/", "\x1b[31m", "\n",
    "\u202e", "../../x", "/", ".", "~", "%s%n", "{}", "${HOME}", "=1+1", "a" * 300, "\udc80", "é", "😀",
)  # fmt: skip
"""Texts for a setting: numbers without bounds, words of other settings, and what shells, YAML and markup read."""

SCALARS: tuple[Any, ...] = (
    None, True, False, 0, -1, 10**30, 2**63, 1e308, float("nan"), float("inf"), "", "9.5", "true", "x" * 2000, "\ud800",
    "\x1b[31m", "[/a]", "$\\frac{$", "=1+1", "<script>alert(1)</script>", "a|b\n| c", [], {}, [[[[]]]],
    {"a": {"b": None}},
)  # fmt: skip
"""Values of JSON for a field of a record."""

SWEEP = """\
program: ecdit
command: ["${env}", "ecdit", "train", "${args_no_hyphens}"]
method: grid
name: study
metric: {name: val_loss, goal: minimize}
parameters:
  model.name: {value: nano}
  arm:
    values:
      - routing.name=dense
      - routing.name=expert_choice routing.group_images=8
  optim.learning_rate: {distribution: log_uniform_values, min: 1.0e-4, max: 1.0e-2}
  ecdit.iso_activation: {values: [null, ffn_factor]}
  seed: {values: [0, 1, 2]}
  train.images: {value: 6400}
"""

LINES: tuple[str, ...] = (
    "  seed: {values: [0, 1]}",
    "  model: {value: micro}",
    "method: random",
    "run_cap: 1000000000",
    "  q: 1.0e-300",
    "parameterz: {}",
    "x: &x [*x]",
    "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c]",
    "  seed: {min: 0, max: 1.0e+30, distribution: int_uniform}",
    "  optim.beta1: {distribution: normal, mu: .inf, sigma: 1}",
    "  seed: {distribution: q_log_uniform_values, min: 1.0e-300, max: 1.0e+300, q: 1.0e-300}",
    "  arm: {value: arm=arm=arm=x}",
    f"  train.images: {{values: {list(range(100, 1600))}}}\n  data.seed: {{values: {list(range(1500))}}}",
    "[" * 3000,
    "? {a: b}\n: c",
    "%YAML 9.9",
    "\t- x",
    "early_terminate: {type: hyperband}",
    "<<: {seed: 1}",
    "!!python/object:os.system x",
)
"""Lines for a sweep file: keys given twice, grids and aliases that explode, distributions without sense."""

RECORD_FILES = ("run.json", "status.json", "steps.jsonl", "evals.jsonl", "routing.jsonl")


def overrides(random: Random, keys: Sequence[str]) -> list[str]:
    """One to three settings with values that they may not have."""
    words = []
    for _ in range(random.randint(1, 3)):
        key = random.choice(keys)
        words.append(f"{random.choice((key, key, key.rpartition('.')[2], key + 'x'))}={random.choice(VALUES)}")
    return [word.replace("\0", "") for word in words]


def sweep_file(random: Random) -> bytes:
    """A sweep file with one to three changes."""
    lines = SWEEP.splitlines()
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(lines))
        change = random.randrange(5)
        if change == 0:
            lines.insert(at, random.choice(LINES))
        elif change == 1:
            lines.insert(at, lines[at])
        elif change == 2:
            del lines[at]
        elif change == 3 and ":" in lines[at]:
            lines[at] = lines[at].partition(":")[0] + ": " + random.choice(VALUES)
        else:
            lines[at] = lines[at][: random.randrange(len(lines[at]) + 1)]
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    return random.choice((text, text, text, text, b"\xff\xfe" + text, text.replace(b"a", b"\0", 1)))


def damage(random: Random, run: Path) -> str:
    """Damage one file of a run, and say which and how."""
    path = run / random.choice(RECORD_FILES)
    how = random.choice(tuple(DAMAGES))
    DAMAGES[how](random, path)
    return f"{path.name} {how}"


def _change_field(random: Random, path: Path) -> None:
    """Give one field, at any depth, a value of another type."""
    lines = path.read_text().splitlines()
    whole = path.suffix == ".json"
    at = random.randrange(len(lines))
    record = json.loads(path.read_text() if whole else lines[at])
    holder: Any = record
    while True:
        key = random.choice(list(holder))
        if not isinstance(holder[key], dict) or not holder[key] or random.random() < 0.3:
            break
        holder = holder[key]
    holder[key] = random.choice(SCALARS)
    text = json.dumps(record)
    path.write_text(text if whole else "\n".join([*lines[:at], text, *lines[at + 1 :], ""]))


def _extreme_number(random: Random, path: Path) -> None:
    """Give one number, or as many as the last row has, a value at the end of what a float64 or an int64 holds."""
    lines = path.read_text().splitlines()
    whole = path.suffix == ".json"
    record = json.loads(path.read_text() if whole else lines[-1])
    names = [name for name, value in record.items() if type(value) in (int, float)]
    for name in random.choice(([random.choice(names)], names)):
        record[name] = random.choice((1.7e308, -1.7e308, 1e41, 1e39, 1e-320, 0, 2**63 - 1, 2**53 + 1, 1))
    text = json.dumps(record)
    path.write_text(text if whole else "\n".join([*lines[:-1], text, ""]))


def _flip_bytes(random: Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(random.randint(1, 20)):
        content[random.randrange(len(content))] = random.randrange(256)
    path.write_bytes(bytes(content))


def _cut(random: Random, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content))])


def _nest(_random: Random, path: Path) -> None:
    path.write_text('{"a":' * 100_000)


def _repeat_lines(random: Random, path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, random.choice(lines), b"\n", random.choice(lines)]))


def _unlink(_random: Random, path: Path) -> None:
    path.unlink()


def _fifo(_random: Random, path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(_random: Random, path: Path) -> None:
    path.unlink()
    path.mkdir()


def _dangling(_random: Random, path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _device(_random: Random, path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _unreadable_run(_random: Random, path: Path) -> None:
    """The whole folder of the run as a link to itself, which nothing can follow."""
    shutil.rmtree(path.parent)
    path.parent.symlink_to(path.parent.name)


DAMAGES: dict[str, Callable[[Random, Path], None]] = {
    "has a field of another type": _change_field,
    "has another field of another type": _change_field,
    "has a third field of another type": _change_field,
    "has an extreme number": _extreme_number,
    "has another extreme number": _extreme_number,
    "has flipped bytes": _flip_bytes,
    "is cut": _cut,
    "is nested deeply": _nest,
    "has lines twice": _repeat_lines,
    "is missing": _unlink,
    "is a FIFO": _fifo,
    "is a folder": _folder,
    "is a dangling link": _dangling,
    "is a device": _device,
    "is in a run folder that is a link to itself": _unreadable_run,
}
