"""YAML of users is read once, with lines, and never explodes."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from experiments.config.yaml_file import MAX_DEPTH, MAX_VALUES, MAX_YAML_BYTES, parse_yaml, read_yaml
from experiments.errors import ConfigError, SpecError

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
CHAIN = "a0: &a0 x\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 2000))


def parsed(text: str | bytes, as_text: bool = False):
    return parse_yaml(text, "f.yaml", ConfigError, as_text)


def refused(text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml: a is given twice, in lines 1 and 3."),
        ("a: 1\n'a': 3\n", "f.yaml: a is given twice, in lines 1 and 2."),
        ("a:\n  b: 1\n  c: 2\n  b: 1\n", "f.yaml: a.b is given twice, in lines 2 and 4."),
        ("a:\n  - {b: 1}\n  - b: 1\n    b: 2\n", "f.yaml: a.1.b is given twice, in lines 3 and 4."),
        ('{"a": {"b": 1,\n"b": 2}}', "f.yaml: a.b is given twice, in lines 1 and 2."),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  b: 1\n  <<: *x\n", "f.yaml: y.<< is given twice, in lines 3 and 5."),
        ("a: {b: 1, b: 2}", "f.yaml: a.b is given twice, in line 1."),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  b: 1\n  b: 2\n", "f.yaml: y.b is given twice, in lines 4 and 5."),
    ],
)
def test_a_key_given_twice_is_refused_with_both_lines(text: str, message: str) -> None:
    assert refused(text) == f"{message} Keep one of them."


def test_a_merge_gives_way_to_what_the_mapping_says_itself() -> None:
    content = parsed("x: &x {a: 1, b: 2}\ny: &y {a: 3, c: 4}\nz:\n  <<: [*x, *y]\n  b: 5\n")
    assert content.value["z"] == {"a": 1, "b": 5, "c": 4}
    assert (content.lines["z", "b"], content.lines["z", "c"]) == (5, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, f"it holds more than {MAX_VALUES:,} values, its aliases expanded"),
        ("a: [" + "x," * (MAX_VALUES + 9) + "]", f"it holds more than {MAX_VALUES:,} values"),
        ("a: &a [1, *a]", "the alias in line 1 stands for what it is itself a part of"),
        ("a: &a\n  b: {c: *a}", "the alias in line 2 stands for what it is itself a part of"),
        ("&a {<<: *a}", "the alias in line 1 stands for what it is itself a part of"),
        ("[" * 100_000, f"line 1 is nested more than {MAX_DEPTH} levels deep"),
        ("{a: " * 100_000, f"line 1 is nested more than {MAX_DEPTH} levels deep"),
        ("- " * 50_000 + "x", f"line 1 is nested more than {MAX_DEPTH} levels deep"),
        ("\n".join(" " * n + "a:" for n in range(500)), f"line {MAX_DEPTH} is nested more than"),
        (CHAIN, "is nested more than"),
        ("a: " + "9" * 5000, "is not of the kind int"),
        ("a: 2026-13-45", "line 1: 2026-13-45 is not of the kind timestamp"),
        ("a: !!bool maybe", "line 1: maybe is not of the kind bool"),
        ("a: !!int ''", "is not of the kind int"),
        ("a: !!python/object/apply:os.system [ls]\nb: !mine x", "line 2 has a tag of its own"),
        ("? [a, b]\n: c", "the key in line 1 is not a text"),
        ("<<: 1", "<< in line 1 does not merge keys"),
        ("a: *b", "is not YAML: found undefined alias 'b' in line 1, column 4"),
        ("a: 1\n---\nb: 1", "is not YAML: expected a single document"),
        (b"a: 1\n# caf\xe9\n", "f.yaml is not UTF-8 in line 2. Save it as UTF-8."),
        (b"a: \x00", "is not YAML: "),
        ("a: \x1b[31m", "is not YAML: "),
        ("a: \udc80", "is not YAML: "),
    ],
)
def test_what_would_explode_or_is_broken_is_one_short_line(text: str | bytes, message: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert message in refused(text)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_a_file_with_a_byte_order_mark_is_read() -> None:
    assert parsed("a: 1".encode("utf-16")).value == parsed("a: 1".encode("utf-8-sig")).value == {"a": 1}


def test_values_stay_as_they_are_written_where_that_is_asked() -> None:
    text = "a: 1e-5\nb: 12:00:00\nc: yes\n1: [~, '', 0x10]\n"
    assert parsed(text, as_text=True).value == {"a": "1e-5", "b": "12:00:00", "c": "yes", "1": ["~", "", "0x10"]}
    assert parsed(text).value == {"a": "1e-5", "b": 43200, "c": "yes", "1": [None, "", 16]}


def test_numbers_to_another_base_are_told_apart_from_those_that_mean_what_they_say() -> None:
    content = parsed(
        "a: [010, 1:30, -0_17, 12:00:00.5, 007, 08, 0, '010', 0x10, 1_000, 0.5, yes, -0b11, '0x10']\nb: {c: 020}\n"
    )
    assert content.other_bases == {
        ("a", "0"): "010 is a number to the base 8",
        ("a", "1"): "1:30 is a number to the base 60",
        ("a", "2"): "-0_17 is a number to the base 8",
        ("a", "3"): "12:00:00.5 is a number to the base 60",
        ("a", "8"): "0x10 is a number to the base 16",
        ("a", "12"): "-0b11 is a number to the base 2",
        ("b", "c"): "020 is a number to the base 8",
    }
    assert parsed("a: [010, 1:30]", as_text=True).other_bases == {}


def make_fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def make_large(path: Path) -> Path:
    path.write_bytes(b"#" * (MAX_YAML_BYTES + 1))
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_fifo, "it is a FIFO, not a regular file"),
        (make_large, "it is larger than 1 MiB"),
        (lambda path: path.parent, "irectory"),
        (lambda path: Path("/dev/zero"), "it is a device, not a regular file"),
        (lambda path: path.with_name("x" * 300), "File name too long"),
        (lambda path: Path("a\0b"), "null byte"),
    ],
)
def test_what_is_no_file_of_settings_is_named_and_never_waited_for(tmp_path: Path, make, reason: str) -> None:
    with pytest.raises(SpecError, match=rf"cannot be read: .*{reason}") as caught:
        read_yaml(make(tmp_path / "f.yaml"), SpecError, as_text=True)
    assert "\n" not in str(caught.value)
