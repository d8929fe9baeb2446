"""Text of records means nothing where it is shown: to a spreadsheet, a page, a figure."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis.escaping import for_csv, html_text, markdown_block, markdown_code, markdown_text
from analysis.run_table import markdown
from analysis.style import Drawing, arm_rows, paper_style, shown, write_drawing


@pytest.mark.parametrize("cell", ["=1+1", "+cmd", "-x", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_text_that_a_spreadsheet_takes_for_a_formula_is_quoted(cell):
    written = for_csv(pd.DataFrame({"name": [cell], cell: [1.0]}))
    assert written["name"].iloc[0].startswith("'")
    assert written.columns[1].startswith("'")


def test_numbers_stay_numbers():
    table = pd.DataFrame({"loss": [-0.5, 1e-9], "mixed": [-2, "-1.5"], "words": ["+3", "a-b"], "none": [None, None]})
    assert for_csv(table).to_csv(index=False) == table.to_csv(index=False)


def test_a_csv_can_always_be_encoded():
    assert for_csv(pd.DataFrame({"name": pd.Series(["\udce9"], dtype=object)})).to_csv().encode()


def test_a_cell_of_a_markdown_table_stays_in_its_row():
    lines = markdown(["a", "b"], [["x|y\nz", "<script>`$1$`\x1b[31m"]]).splitlines()
    assert lines[2] == "| x\\|y z | \\<script\\>\\`\\$1\\$\\`\\\\x1b\\[31m |"


def test_code_in_markdown_ends_where_it_should():
    assert markdown_code("a`b``c") == "```a`b``c```"
    assert markdown_code("`") == "`` ` ``"
    assert markdown_block(["ecdit '```", "x\ny"]) == "````bash\necdit '```\nx\\ny\n````"


def test_html_shows_what_it_would_execute():
    assert html_text('<b a="1">\x1b]0;x\x07\u202e') == "&lt;b a=&quot;1&quot;&gt;\\x1b]0;x\\x07\\u202e"


def test_markdown_text_is_one_line():
    assert markdown_text("a\n\n# b") == "a \\# b"


@pytest.mark.parametrize("name", ["$\\frac{$", "$x$", "a$b", "\\$", "f_c $", "\x1b[0m\n", "\u202e"])
def test_a_name_in_a_figure_is_no_formula(name, tmp_path):
    with paper_style():
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        arm_rows(axes, [(name, "dense", 0)])
        axes.set_title(shown(name))
        axes.plot([1], [1], label=shown(name))
        axes.legend()
        paths = write_drawing(Drawing(figure, pd.DataFrame({"arm": [name]})), tmp_path, "one")
    assert [path.suffix for path in paths] == [".png", ".svg", ".csv"]
    assert "\x1b" not in paths[1].read_text()
    assert len(pd.read_csv(io.StringIO(paths[2].read_text()))) == 1
