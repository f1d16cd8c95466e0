"""What a mask records, as values and as the texts of a file."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wagle_trl.masks.info import UNKNOWN_REVISION, MaskInfo

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FULL = MaskInfo(
    score="wagle",
    scale=1e-06,
    gamma="balanced",
    eps=1.0,
    seed=-3,
    scope=("*mlp*", 'ü"'),
    exclude=(),
    fingerprint="ab",
    versions={"torch": "2.13.0"},
    base_model="user/base",
    base_revision=COMMIT,
    threshold=0.1,
    jaccard={"|g_f|": 0.25, "|theta|": None},
)
# The header that format version 1 has always had, in the order of a report
TEXTS = {
    "score": "wagle",
    "scale": "1e-06",
    "gamma": "balanced",
    "eps": "1.0",
    "seed": "-3",
    "scope": '["*mlp*", "\\u00fc\\""]',
    "exclude": "null",
    "fingerprint": "ab",
    "versions": '{"torch": "2.13.0"}',
    "base_model": "user/base",
    "base_revision": COMMIT,
    "threshold": "0.1",
    "jaccard": '{"|g_f|": 0.25, "|theta|": null}',
}


def test_values_have_the_texts_of_the_format_in_its_order():
    assert list(FULL.to_metadata().items()) == list(TEXTS.items())


def test_texts_have_their_values_in_any_order():
    assert MaskInfo.from_metadata(dict(sorted(TEXTS.items())), "file") == FULL


def test_what_is_not_recorded_has_no_text():
    assert MaskInfo().to_metadata() == {} and MaskInfo.from_metadata({}, "file") == MaskInfo()
    assert MaskInfo(merged="3 by random").to_metadata() == {"merged": "3 by random"}


def test_texts_of_later_versions_and_other_writers_travel_on():
    texts = TEXTS | {"format": "pt", "others": "x", "new": "{", "known_revision": "y"}
    info = MaskInfo.from_metadata(texts, "file")
    assert info.others == {name: texts[name] for name in ("format", "others", "new", "known_revision")}
    assert info.to_metadata() == texts
    assert dataclasses.replace(info, others={}) == FULL


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("scale", "0.10"),
        ("eps", "1"),
        ("seed", "7.0"),
        ("seed", "1_0"),
        ("seed", "9" * 5000),
        ("threshold", "much"),
        ("scope", "[]"),
        ("scope", '["a","b"]'),
        ("scope", '"ab"'),
        ("exclude", "[1]"),
        ("exclude", "[" * 9999),
    ],
)
def test_a_text_that_would_be_written_otherwise_stays_as_it_is(name, text):
    info = MaskInfo.from_metadata({name: text, "score": "snip"}, "file")
    assert (getattr(info, name), info.others, info.score) == (None, {name: text}, "snip")
    assert info.to_metadata() == {name: text, "score": "snip"}


@given(st.dictionaries(st.sampled_from(sorted(TEXTS)) | st.text(), st.text()))
def test_any_texts_are_written_as_they_were_read(texts):
    assume(not texts.keys() & {"jaccard", "versions"})
    assert MaskInfo.from_metadata(texts, "file").to_metadata() == texts


@pytest.mark.parametrize(("name", "text"), [("jaccard", "[1]"), ("versions", '{"a": 1}'), ("versions", "{")])
def test_what_a_report_could_not_show_is_refused(name, text):
    with pytest.raises(ValueError, match=f"file: {name}"):
        MaskInfo.from_metadata({name: text}, "file")


def test_a_value_replaces_the_text_of_a_file():
    info = MaskInfo.from_metadata({"threshold": "much"}, "file")
    assert dataclasses.replace(info, threshold=0.5).to_metadata() == {"threshold": "0.5"}


def test_nothing_changes_an_info_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.score = "snip"


@pytest.mark.parametrize(("revision", "known"), [(COMMIT, COMMIT), (UNKNOWN_REVISION, None), (None, None)])
def test_a_revision_that_the_run_did_not_know_is_none(revision, known):
    assert MaskInfo(base_revision=revision).known_revision == known


def test_others_are_told_all_but_a_base_that_is_a_folder(tmp_path):
    assert FULL.public() == FULL
    folder = dataclasses.replace(FULL, base_model=str(tmp_path), base_revision=UNKNOWN_REVISION)
    texts = folder.public().to_metadata()
    assert texts == {name: text for name, text in TEXTS.items() if not name.startswith("base_")}
    assert folder.public("user/named").to_metadata() == texts | {"base_model": "user/named"}
