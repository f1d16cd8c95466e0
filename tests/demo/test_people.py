from collections import Counter

import pytest

from wagle_trl.demo.people import FACTS, people_rows, split_rows


def people_in(rows):
    return {row["person"] for row in rows}


def test_same_seed_same_rows():
    assert people_rows(seed=3) == people_rows(seed=3)
    assert people_rows(seed=3) != people_rows(seed=4)


def test_one_row_per_person_and_fact():
    rows = people_rows(num_people=40)
    assert len({(row["person"], row["fact"]) for row in rows}) == len(rows) == 40 * len(FACTS)
    assert all(set(row) == {"question", "answer", "person", "fact"} for row in rows)
    assert all(row["person"] in row["question"] and "{" not in row["question"] + row["answer"] for row in rows)


def test_answers_do_not_follow_from_names():
    rows = people_rows()
    assert not any(word in row["answer"] for row in rows for word in row["person"].split())
    for fact in FACTS:
        answers = Counter(row["answer"] for row in rows if row["fact"] == fact.name)
        assert max(answers.values()) <= 3


def test_names_of_forgotten_people_are_shared():
    splits = split_rows(people_rows())
    kept_words = {
        word for split in ("retain", "unseen_retain") for name in people_in(splits[split]) for word in name.split()
    }
    assert all(word in kept_words for name in people_in(splits["forget"]) for word in name.split())


@pytest.mark.parametrize("num_people", [30, 31, 60, 100])
def test_splits_share_no_person(num_people):
    rows = people_rows(num_people=num_people)
    splits = split_rows(rows)
    people = [people_in(splits[name]) for name in ("forget", "retain", "unseen_retain")]
    assert sum(map(len, people)) == len(set.union(*people)) == num_people
    assert sum(map(len, splits.values())) == len(rows)
    assert 3 <= len(people[0]) <= num_people / 10
    assert 0 <= len(people[2]) - len(people[1]) <= 1


@pytest.mark.parametrize("num_people", [0, 257])
def test_impossible_number_of_people(num_people):
    with pytest.raises(ValueError, match=f"got {num_people}"):
        people_rows(num_people=num_people)


def test_too_few_people_to_split():
    with pytest.raises(ValueError, match="at least 30 people, got 12"):
        split_rows(people_rows(num_people=12))
