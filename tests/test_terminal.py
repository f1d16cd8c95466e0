import io

import pytest
from rich.table import Table

from wagle_trl.terminal import Terminal

ATTACK = "\x1b[2J[/x][link=https://a.test]a[/link]:smile:\u202eb\x07"
SHOWN = r"\x1b[2J[/x][link=https://a.test]a[/link]:smile:\u202eb\x07"


def printed(*objects, **options):
    file = io.StringIO()
    Terminal(file, width=200, **options).print(*objects)
    return file.getvalue()


def test_text_is_shown_as_it_is():
    assert printed(ATTACK) == SHOWN + "\n"


def test_lines_stay_lines():
    assert printed("one\ntwo\r\x1b") == "one\ntwo\\r\\x1b\n"


@pytest.mark.parametrize("place", ["title", "heading", "cell", "caption"])
def test_so_is_the_text_of_a_table(place):
    table = Table(title=ATTACK if place == "title" else None, caption=ATTACK if place == "caption" else None)
    table.add_column(ATTACK if place == "heading" else "name")
    table.add_row(ATTACK + "\nc" if place == "cell" else "x" * 100)
    text = printed(table)
    assert SHOWN in text and all(line.isprintable() for line in text.splitlines())
    assert place != "cell" or SHOWN + r"\nc" in text


def test_where_there_are_colours_only_they_are_commands():
    text = printed(ATTACK, Table("a", title=ATTACK), force_terminal=True, color_system="truecolor")
    assert "\x1b[2J" not in text and "\x1b]8" not in text and "\x07" not in text and "\u202e" not in text


def test_an_absurdly_long_line_is_cut_and_a_long_command_is_not():
    file = io.StringIO()
    Terminal(file).print("x" * 5000, soft_wrap=True)
    assert file.getvalue() == "x" * 5000 + "\n"
    Terminal(file).print("y" * 10**6, soft_wrap=True)
    assert file.getvalue().count("y") < 10_000
