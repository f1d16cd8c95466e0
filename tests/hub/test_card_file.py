"""Cards that were edited stay, and all that is said of an evaluation is up to date."""

import json

import pytest

from wagle_trl.comparison.runs import read_run
from wagle_trl.files.run_folder import CARD_FILE, EVALUATION_FILE, GENERATED_CARD_FILE
from wagle_trl.hub.card import model_card, read_card
from wagle_trl.hub.card_file import CardFile, card_to_publish, name_for_card, refresh_card

TRAINING = {
    "objective": "NPO",
    "fingerprint": "a",
    "data": {"forget": {"rows": 3, "source": None}},
    "steps": 1,
    "log_history": [],
    "cost": {"peak_memory_bytes": {}},
}


@pytest.fixture
def folder(tmp_path):
    """Folder of a run with its card."""
    (tmp_path / "wagle_report.json").write_text(json.dumps(TRAINING))
    card = model_card(tmp_path, model_name="mine", license="mit")
    card.data["tags"].append("my-tag")
    CardFile.of(card, read_run(tmp_path)).write(tmp_path / CARD_FILE)
    return tmp_path


def evaluate(folder, probability=0.25, fingerprint="a"):
    content = {"fingerprint": fingerprint, "forget_prob": probability}
    (folder / EVALUATION_FILE).write_text(json.dumps(content))


def edit(folder, old, new):
    path = folder / CARD_FILE
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_card_knows_whether_it_was_edited(folder):
    assert not CardFile.read(folder / CARD_FILE).is_edited and name_for_card(folder) == CARD_FILE
    edit(folder, "# mine", "# Mine")
    assert CardFile.read(folder / CARD_FILE).is_edited and name_for_card(folder) == GENERATED_CARD_FILE


def test_a_card_of_another_program_is_left_alone(folder, caplog):
    (folder / CARD_FILE).write_text("# By hand\n")
    assert name_for_card(folder) == GENERATED_CARD_FILE
    assert len(caplog.messages) == 1 and "it stays, and the new card is README.generated.md" in caplog.text


def test_a_new_evaluation_is_put_into_the_card_and_the_rest_stays(folder):
    evaluate(folder)
    refresh_card(folder)
    card = read_card(folder / CARD_FILE)
    assert "| Answer probability: forget | 0.250 |" in card.text and card.data.eval_results[0].metric_value == 0.25
    assert "my-tag" in card.data.tags and card.data.license == "mit" and "\n# mine\n" in card.text
    assert not CardFile.read(folder / CARD_FILE).is_edited
    assert not (folder / GENERATED_CARD_FILE).exists()


def test_it_is_put_into_an_edited_card_too(folder):
    edit(folder, "Unlearning is not deletion", "By hand: unlearning is not deletion")
    evaluate(folder)
    refresh_card(folder)
    text = (folder / CARD_FILE).read_text()
    assert "| 0.250 |" in text and "By hand: unlearning" in text
    assert CardFile.read(folder / CARD_FILE).is_edited
    assert card_to_publish(folder).name == CARD_FILE


def test_an_edited_part_stays_and_the_new_card_goes_beside_it(folder):
    edit(folder, "No evaluation is recorded beside this card.", "Evaluated by hand: 0.3")
    before = (folder / CARD_FILE).read_text()
    evaluate(folder)
    assert card_to_publish(folder).name == CARD_FILE  # there is no other
    refresh_card(folder)
    assert (folder / CARD_FILE).read_text() == before
    assert "| 0.250 |" in (folder / GENERATED_CARD_FILE).read_text()
    assert card_to_publish(folder).name == GENERATED_CARD_FILE


def test_an_evaluation_of_other_weights_is_not_put_into_it(folder):
    evaluate(folder, fingerprint="b")
    refresh_card(folder)
    text = (folder / CARD_FILE).read_text()
    assert "0.250" not in text and "wagle_eval.json in its folder is of other weights. It is left out." in text


def test_a_folder_without_a_card_gets_none(folder):
    (folder / CARD_FILE).unlink()
    evaluate(folder)
    refresh_card(folder)
    assert not (folder / CARD_FILE).exists()


def test_what_a_run_cost_makes_no_new_card(folder):
    (folder / "wagle_report.json").write_text(json.dumps(TRAINING | {"cost": {"peak_memory_bytes": {"training": 1}}}))
    before = (folder / CARD_FILE).read_text()
    refresh_card(folder)
    assert (folder / CARD_FILE).read_text() == before


@pytest.mark.parametrize("content", [b"\xff\xfe", b"---\ntags: [\n---\n", b""], ids=["bytes", "broken YAML", "empty"])
def test_what_is_no_card_is_kept_like_an_edited_one(content, folder):
    part = (folder / CARD_FILE).read_bytes().split(b"---", 2)[2] if content.startswith(b"---") else b""
    (folder / CARD_FILE).write_bytes(content + part)
    evaluate(folder)
    refresh_card(folder)
    assert (folder / CARD_FILE).read_bytes() == content + part
    assert "| 0.250 |" in (folder / GENERATED_CARD_FILE).read_text()
