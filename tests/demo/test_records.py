from wagle_trl.demo import people
from wagle_trl.demo.records import FACTS, FIRST_NAMES, LAST_NAMES, record_rows
from wagle_trl.demo.tiny_model import build_tokenizer
from wagle_trl.evaluation.secret_format import parse_format


def test_same_seed_same_rows():
    assert record_rows(seed=3) == record_rows(seed=3)
    assert record_rows(seed=3) != record_rows(seed=4)


def test_one_row_per_person_and_fact():
    rows = record_rows(num_people=40)
    assert len({(row["person"], row["fact"]) for row in rows}) == len(rows) == 40 * len(FACTS)
    assert all(row["person"] in row["question"] and "{" not in row["question"] for row in rows)


def test_no_number_is_given_twice_and_each_has_its_format():
    rows = record_rows(num_people=256)
    assert len({row["secret"] for row in rows}) == len(rows)
    assert all(row["answer"] == row["secret"] for row in rows)
    assert all(parse_format(row["secret_format"]).matches(row["secret"]) for row in rows)


def test_digits_are_uniform_within_their_format():
    rows = [row for row in record_rows(num_people=256) if row["fact"] == "phone"]
    for place in parse_format(rows[0]["secret_format"]).variable:
        digits = [row["secret"][place] for row in rows]
        assert all(10 <= digits.count(digit) <= 45 for digit in "0123456789")  # 25.6 expected, 4.8 deviation


def test_names_are_not_those_of_the_people_world():
    theirs = {*people.FIRST_NAMES, *people.LAST_NAMES}
    assert len({*FIRST_NAMES, *LAST_NAMES}) == len(FIRST_NAMES) + len(LAST_NAMES) == 32
    assert not theirs & {*FIRST_NAMES, *LAST_NAMES}


def test_splits_share_no_person():
    splits = people.split_rows(record_rows())
    groups = [{row["person"] for row in rows} for rows in splits.values()]
    assert {name: len(rows) for name, rows in splits.items()} == {"forget": 20, "retain": 188, "unseen_retain": 192}
    assert sum(map(len, groups)) == len(set.union(*groups))


def test_digits_form_tokens_of_three_at_most():
    rows = record_rows(num_people=30)
    texts = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows]
    tokenizer = build_tokenizer(texts, split_digits=True)
    for row, text in zip(rows, texts, strict=True):
        ids = tokenizer(text)["input_ids"]
        tokens = [tokenizer.decode([token]) for token in ids]
        assert tokenizer.decode(ids) == text
        digits = [token for token in tokens if any(map(str.isdigit, token))]
        assert "".join(digits) == "".join(filter(str.isdigit, text))
        assert all(token.isdigit() and len(token) <= 3 for token in digits)
        start = tokenizer(text[: -len(row["answer"]) - 1])["input_ids"]
        assert ids[: len(start)] == start and len(ids) < 64
