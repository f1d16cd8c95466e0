import pytest

from wagle_trl.evaluation.disjoint import check_disjoint

ROW, OTHER = {"question": "Who?", "answer": "Bo"}, {"question": "Who?", "answer": "Cy"}


@pytest.mark.parametrize("unseen", ["holdout", "unseen_retain"])
@pytest.mark.parametrize("seen", ["forget", "retain"])
@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {"prompt": "Who?", "completion": " Bo"},
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Bo"}]},
        {"input_ids": [1, 2]},
    ],
    ids=lambda row: next(iter(row)),
)
def test_a_row_that_is_said_to_be_unseen_stands_in_no_other_set(unseen, seen, row):
    sets = {unseen: [OTHER, row | {"perturbed_answer": None}], seen: [row | {"perturbed_answer": ["Cy"]}]}
    with pytest.raises(ValueError, match=f"1 rows of the set '{unseen}' are also in the set '{seen}', such as"):
        check_disjoint(sets)


def test_sets_of_rows_of_their_own_are_apart():
    check_disjoint({"forget": [ROW], "retain": [ROW], "holdout": [OTHER], "unseen_retain": [OTHER]})
    check_disjoint({"unseen_retain": [ROW], "world_facts": [ROW]})
    check_disjoint({})
