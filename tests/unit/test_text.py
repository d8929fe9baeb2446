import pytest

from experiments.text import printable, shortened


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nano-dense-s0", "nano-dense-s0"),
        ("größe 10 µm", "größe 10 µm"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("two\nlines\r\ttab", "two\\nlines\\r\\ttab"),
        ("\udc80", "\\udc80"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2028", "\\u2028"),
        ("[bold]$x$", "[bold]$x$"),
    ],
)
def test_what_is_not_printable_is_written_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()


def test_a_long_text_keeps_both_ends() -> None:
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghij", 5) == "ab…ij"
    assert shortened("abcdefghij", 4) == "ab…j"
    assert shortened("abcdefghij", 1) == "…"
