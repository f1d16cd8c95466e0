import pytest

from wagle_trl.text import code, escaped, figure_text, one_line, printable

HOSTILE = {
    "escape code": ("\x1b[2J", r"\x1b[2J"),
    "bell and backspace": ("\a\b", r"\x07\x08"),
    "C1 control": ("\x9b31m", r"\x9b31m"),
    "line break": ("a\r\nb", r"a\r\nb"),
    "line separator": ("a\u2028b", r"a\u2028b"),
    "turns the direction": ("\u202egnp.exe", r"\u202egnp.exe"),
    "isolates": ("\u2066a\u2069", r"\u2066a\u2069"),
    "no width": ("a\u200bb\ufeff", r"a\u200bb\ufeff"),
    "half a character": ("\ud800", r"\ud800"),
    "private use": ("\ue000", r"\ue000"),
}


@pytest.mark.parametrize(("text", "shown"), HOSTILE.values(), ids=HOSTILE)
def test_what_would_not_be_seen_as_it_is_becomes_an_escape(text, shown):
    assert printable(text) == shown
    assert printable(text).isprintable()


@pytest.mark.parametrize("text", ["", "NPO", "Tromsø", "中文", "[/x]", "🙂", "a  b", 3, None])
def test_text_that_is_seen_stays(text):
    assert printable(text) == str(text)


@pytest.mark.parametrize("character", ["x", "\x1b", "\ud800", "😀"])
@pytest.mark.parametrize("limit", [20, 1000])
def test_a_long_text_loses_its_middle(character, limit):
    shown = printable(f"the file {character * 10**6} mend it", limit)
    assert len(shown) <= limit and shown.isprintable()
    assert shown.startswith("the file") and " ... " in shown
    assert limit == 20 or shown.endswith(" mend it")


def test_a_text_as_long_as_the_limit_stays():
    assert printable("x" * 20, 20) == "x" * 20
    assert len(printable("x" * 19 + "\x1b", 20)) == 20


def test_blanks_and_line_breaks_become_one_blank_in_a_line():
    assert one_line(" a\n\tb\x1b ") == r"a b\x1b"


def test_markdown_leaves_plain_text_as_it_is():
    assert escaped("<b>*_`$[x](y)") == r"\<b\>\*\_\`\$\[x\](y)"
    assert escaped("a\n# b\u202e") == r"a \# b\\u202e"


@pytest.mark.parametrize("text, shown", [("a`b", "`ab`"), ("`", "`?`"), ("\x1b\n", r"`\x1b`")])
def test_nothing_ends_inline_code(text, shown):
    assert code(text) == shown


def test_a_figure_sets_no_formula_and_leaves_no_label_out():
    assert figure_text(r"$\frac$") == r"\$\frac\$"
    assert figure_text("_hidden") == " _hidden"
    assert len(figure_text("x" * 500)) == 60
