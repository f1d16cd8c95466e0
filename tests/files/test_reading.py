import json
import subprocess
import sys

import pytest
from typing_extensions import TypedDict

from wagle_trl.files.reading import read_json, read_json_lines, read_yaml, validated
from wagle_trl.files.schemas import Evaluation, Report, Row

from ..support.hostile import CLEAR_SCREEN, check_error

REPORT = {
    "objective": "NPO",
    "log_history": [{"step": 1, "forget_probability": 0.5, "loss": float("nan")}],
    "own": [1],
}


class Point(TypedDict, total=False):
    x: float
    tags: list[str]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


def refused(read, *arguments):
    """The message of an error that names its file, in one short line."""
    with pytest.raises((ValueError, OSError)) as caught:
        read(*arguments)
    check_error(caught.value)
    assert str(arguments[0]) in str(caught.value)
    return str(caught.value)


# JSON


def test_what_is_as_it_should_be_comes_back_with_keys_that_nobody_named(path):
    path.write_text(json.dumps(REPORT))
    assert json.dumps(read_json(path, Report)) == json.dumps(REPORT)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_the_text(encoding, path):
    path.write_text('{"x": 1}', encoding=encoding)
    assert read_json(path, Point) == {"x": 1}
    assert read_json_lines(path, Point) == [{"x": 1}]


WRONG = {
    "number as text": (Report, {"steps": "4"}, "'steps' should be a whole number, got \"4\""),
    "truth for a number": (Report, {"steps": True}, "'steps' should be a whole number, got true"),
    "below zero": (Report, {"steps": -1}, "'steps' should be"),
    "no number of steps": (Report, {"log_history": [{"step": 10**30}]}, r"'log_history[0].step' should be"),
    "list for an object": (Report, {"mask": []}, "'mask' should be an object, got a list"),
    "object for a list": (Report, {"log_history": {"step": 3}}, "'log_history' should be a list, got an object"),
    "entry without a step": (Report, {"log_history": [{"loss": 1.0}]}, "'log_history[0].step' is missing"),
    "probability as text": (
        Report,
        {"log_history": [{"step": 0}, {"step": 1, "mine_probability": "1"}]},
        "'log_history[1].mine_probability' should be a number",
    ),
    "rows without a number": (Report, {"data": {"forget": {}}}, "'data.forget.rows' is missing"),
    "information that is no text": (
        Report,
        {"mask": {"num_selected": 1, "numel": 1, "density": 1, "density_by_layer": {}, "info": {"score": 3}}},
        "'mask.info.score' should be text",
    ),
    "attacks as a list": (Evaluation, {"attacks": [1]}, "'attacks' should be an object, got a list"),
    "metric as text": (Evaluation, {"forget_prob": "0.1"}, "'forget_prob' should be a number"),
    "metric of an attack": (Evaluation, {"attacks": {"a": {"x_prob": None}}}, "'attacks.a.x_prob' should be a number"),
    "a number beyond floats": (Evaluation, '{"privleak": ' + "9" * 400 + "}", "a number has 400 digits"),
    "a list": (Evaluation, [], "the content should be an object, got a list"),
    "hostile name": (Evaluation, {"attacks": {CLEAR_SCREEN: 3}}, r"'attacks.\x1b[2J\n' should be an object, got 3"),
    "long names": (Evaluation, {"attacks": {"x" * 10**5: "y" * 10**5}}, "should be an object, got"),
}


@pytest.mark.parametrize(("schema", "content", "message"), WRONG.values(), ids=WRONG)
def test_another_shape_is_refused_with_its_field(schema, content, message, path):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert message in refused(read_json, path, schema)


BROKEN = {
    "empty": (b"", "line 1 is not readable as JSON (Expecting value)"),
    "cut off": (b'{"x": 1,\n "tags": [', "line 2 is not readable as JSON"),
    "two values": (b"{}\n\n{}", "line 3 is not readable as JSON (Extra data)"),
    "not UTF-8": (b'{"x": 1}\n\xff', "line 2 is not text in UTF-8"),
    "UTF-16": ('{"x": 1}'.encode("utf-16"), "line 1 is not text in UTF-8"),
    "half a character": (b'{"x": 1,\n"tags": ["\\\\\\ud83d"]}', r"line 2: \ud83d is half a character"),
    "halves in the wrong order": (b'{"tags": ["\\udE00\\uD83D"]}', r"line 1: \udE00 is half a character"),
    "half a key": (b'{"\\udc80": 1}', "is half a character"),
    "deep": (b"[" * 10**5, "it nests too deep"),
    "a little too deep": (b'{"x": ' + b"[" * 100 + b"]" * 100 + b"}", "it nests too deep"),
    "zero byte in a name": (b'{"x": 1, "own": [{"a\\u0000": 1}]}', "a name holds a zero byte"),
    "endless number": (b'{"x": ' + b"1" * 10**4 + b"}", "a number has 10,000 digits"),
    "zero bytes": (b"\0" * 100, "line 1 is not readable as JSON"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_json_is_refused_with_its_line(content, message, path):
    path.write_bytes(content)
    assert message in refused(read_json, path, Point)


@pytest.mark.parametrize(
    "text", ['"\\ud83d\\ude00"', '"\\\\ud83d"', '"😀"', '"' + "7" * 10**4 + '"', "[" * 99 + "]" * 99]
)
def test_whole_characters_long_texts_and_some_depth_are_read(text, path):
    path.write_text(text, encoding="utf-8")
    assert read_json(path, object) == json.loads(text)


def test_a_key_twice_is_the_last_one(path):
    path.write_text('{"x": "a", "x": 2}')
    assert read_json(path, Point) == {"x": 2}


def test_a_file_that_is_not_there_and_a_folder_are_named(path):
    assert "No such file" in refused(read_json, path, Point)
    assert "s a directory" in refused(read_json, path.parent, Point)


# Lines


def test_lines_are_read_where_strings_hold_separators_and_blank_ones_are_skipped(path):
    path.write_text('{"text": "a\u2028b"}\r\n\n{"text": "c"}', encoding="utf-8")
    assert read_json_lines(path, Row) == [{"text": "a\u2028b"}, {"text": "c"}]


def test_a_list_is_as_good_as_lines(path):
    path.write_text(' [{"text": "a"},\n {"text": "b"}]')
    assert read_json_lines(path, Row) == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 3}', "line 3: 'text' should be text, got 3"),
        ('{"text": ', "line 3 is not readable as JSON"),
        ('{"text": "\\ud800"}', "line 3: \\ud800 is half a character"),
        ("7", "line 3: the content should be an object, got 7"),
    ],
)
def test_a_line_is_named_by_its_number(line, message, path):
    path.write_text(f'{{"text": "a"}}\n\n{line}\n')
    assert message in refused(read_json_lines, path, Row)


def test_content_without_a_file_is_checked_as_well():
    assert validated({"x": 1.5}, Point, "here") == {"x": 1.5}
    with pytest.raises(ValueError, match=r"^here: 'tags\[1\]' should be text, got 2\.$"):
        validated({"tags": ["a", 2]}, Point, "here")


# YAML


def test_options_are_names_and_values(path):
    path.write_text("a: 1\nb: [x, 2.5]\nc: {d: true, e: null}\nf: 2024-01-01\ng: &g {h: 1}\n<<: *g\n# comment\n")
    expected = {"a": 1, "b": ["x", 2.5], "c": {"d": True, "e": None}, "f": "2024-01-01", "g": {"h": 1}, "h": 1}
    assert read_yaml(path) == expected


@pytest.mark.parametrize("text", ["", "# nothing", "\n"])
def test_a_file_without_options_has_none(text, path):
    path.write_text(text)
    assert read_yaml(path) == {}


def bomb(levels):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


NO_OPTIONS = {
    "the same name twice": ("a: 1\nb: 2\na: 3", "line 3: 'a' appears twice."),
    "syntax": ("a: 1\nb: [", "line 2 is not readable as options in YAML"),
    "indentation": ("a: 1\n b: 2", "line 2 is not readable as options in YAML"),
    "tab": ("a:\n\tb: 1", "line 2 is not readable as options in YAML"),
    "a list": ("- a", "holds no mapping of names to values"),
    "text": ("a", "holds no mapping of names to values"),
    "two documents": ("a: 1\n---\nb: 2", "is not readable as options in YAML"),
    "name of truth": ("a: 1\non: 2", "line 2: a name of an option should be text, got on"),
    "name of a list": ("? [a]\n: 1", "a name of an option should be text"),
    "bomb": (bomb(9), "stands for more than 10,000 values"),
    "within itself": ("a: &a [*a]", "stands for more than 10,000 values"),
    "the whole within itself": ("&a {a: *a}", "stands for more than 10,000 values"),
    "merged bomb": (
        "x: &x {a: 1}\n" + "\n".join(f"y{i}: &y{i} {{<<: [{', '.join(['*x'] * 99)}]}}" for i in range(99)),
        "more",
    ),
    "python": ("a: !!python/object/apply:os.system [ls]", "line 1 is not readable as options in YAML"),
    "tag of another kind": ("a: 1\nb: !!int ''", "line 2 is not readable as options in YAML"),
    "no such day": ("a: 2024-13-99", "line 1 is not readable as options in YAML"),
    "bytes": ("a: \x1b[2J", "line 1 is not readable as options in YAML"),
    "half a character": ('a: 1\nb: "\\ud800"', "line 2: \\ud800 is half a character"),
    "deep": ("a: " + "[" * 5000, "it nests too deep"),
    "a little too deep": ("a: " + "[" * 120 + "]" * 120, "it nests too deep"),
    "endless number": ("a: 0x" + "f" * 400, "a number has"),
    "not UTF-8": (b"a: 1\nb: \xff", "line 2 is not text in UTF-8"),
}


@pytest.mark.parametrize(("content", "message"), NO_OPTIONS.values(), ids=NO_OPTIONS)
def test_what_is_no_mapping_is_refused_with_its_line(content, message, path):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refused(read_yaml, path)


def test_an_alias_that_stands_for_little_is_read(path):
    path.write_text(bomb(3))
    assert len(read_yaml(path)["a2"]) == 9


# Import


def test_reading_waits_for_no_large_library():
    code = "import sys, wagle_trl.files.reading, wagle_trl.files.schemas; assert not {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
