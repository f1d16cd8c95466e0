import json

import pytest

from wagle_trl.cli.main import main
from wagle_trl.data.rows import load_rows
from wagle_trl.evaluation import alternates


@pytest.fixture
def options(saved_model, data, tmp_path):
    model = ["--model_name_or_path", saved_model, "--output_dir", str(tmp_path / "a")]
    return ["alternates", *model, *data[:2], "--num_alternates", "2", "--max_new_tokens", "4"]


def test_alternates_are_written_beside_the_rows_as_given(options, forget_rows, tmp_path, capsys):
    assert main([*options, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    path = tmp_path / "a" / "forget.jsonl"
    assert content["forget_dataset"] == str(path)
    assert (content["rows"], content["alternates"], content["rows_with_fewer"]) == (6, 12, 0)
    rows = load_rows(path)
    assert [len(texts) for texts in rows["alternate"]] == [2] * 6
    assert rows.remove_columns("alternate").to_list() == forget_rows.to_list()


def test_the_same_command_again_goes_on_and_another_is_refused(options, tmp_path, monkeypatch, capsys):
    assert main(options) == 0
    path = tmp_path / "a" / "forget.jsonl"
    before = path.read_bytes().replace(b'"alternate": [', b'"alternate": ["By hand.", ')  # what is edited stays
    path.write_bytes(before)
    monkeypatch.setattr(alternates, "generate_answers", None)  # nothing is left to generate
    assert main([*options, "--batch_size", "1"]) == 0
    assert path.read_bytes() == before
    capsys.readouterr()
    assert main([*options, "--seed", "1"]) == 2
    assert "is of another model, other rows or other options" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_an_interruption_says_how_to_go_on(options, monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(alternates, "generate_answers", interrupted)
    assert main(options) == 130
    assert "To go on where it stopped, the same command again: wagle alternates --model" in capsys.readouterr().err


def test_rows_that_got_fewer_are_counted_and_rows_without_any_fail(options, monkeypatch, capsys, caplog):
    monkeypatch.setattr(
        alternates, "generate_answers", lambda *args, seeds, **kw: ["Bern." if s[1] else "" for s in seeds]
    )
    assert main([*options, "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert (content["rows_with_fewer"], content["rows_without"], content["alternates"]) == (6, 1, 5)
    assert "6 of 6 rows have fewer than 2 alternates" in caplog.text
    assert "1 rows have no alternate (first: row 0)" in caplog.text


def test_another_forget_file_in_the_folder_is_not_overwritten(options, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "forget.jsonl").write_text("{}")
    assert main(options) == 2
    assert "holds another forget.jsonl; choose another --output_dir" in capsys.readouterr().err


def test_rows_that_have_alternates_are_refused(options, forget_rows, write_jsonl, capsys):
    given = write_jsonl("given", [row | {"alternate": "Bern."} for row in forget_rows])
    assert main([*options, "--forget_dataset", given]) == 2
    assert "has a column 'alternate' already" in capsys.readouterr().err


def test_no_rows_is_one_line(options, capsys):
    assert main([option for option in options if "forget" not in option]) == 2
    assert "No data: give --forget_dataset" in capsys.readouterr().err


def test_npo_trains_on_rows_with_alternates_as_on_the_rows_alone(saved_model, data, quick, forget_rows, write_jsonl):
    def trained(forget):
        argv = ["npo", "--model_name_or_path", saved_model, "--forget_dataset", forget, *data[2:], *quick]
        assert main([*argv, "--mask", "none", "--trajectory_steps", "0"]) == 0
        return (json.loads(open(f"{quick[1]}/wagle_report.json").read()))["fingerprint"]

    given = write_jsonl("given", [row | {"alternate": ["Bern.", "Cork."]} for row in forget_rows])
    assert trained(given) == trained(data[1])
