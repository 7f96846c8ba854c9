"""Ids, texts and who a teacher is."""

from __future__ import annotations

import pytest

from retriever.errors import DataError
from retriever.types import Document, TeacherIdentity, check_id


@pytest.mark.parametrize("identifier", ["d1", "D.7-x_y", "日本", "ü", "http://example.org/a?b=c"])
def test_an_id_without_white_space_is_given_back(identifier: str) -> None:
    assert check_id(identifier, "here") == identifier


@pytest.mark.parametrize("identifier", ["a b", " a", "a\t", "a\nb", "a\u00a0b", "a\u2028b", " "])
def test_an_id_with_white_space_is_refused_with_its_place(identifier: str) -> None:
    with pytest.raises(DataError, match=r"^corpus.jsonl:3: the id .* contains white space, which TREC files cannot carry\. Replace it, for example by _$"):
        check_id(identifier, "corpus.jsonl:3")


@pytest.mark.parametrize("identifier", ["", 7, None, b"d1", ["d1"]])
def test_an_id_is_a_string_that_is_not_empty(identifier: object) -> None:
    with pytest.raises(DataError, match=r"^corpus.jsonl:3: the id .* is not a non-empty string$"):
        check_id(identifier, "corpus.jsonl:3")


def test_the_full_text_is_title_and_text_with_a_space_between() -> None:
    assert Document("d", "fells trees", "Beaver").full_text == "Beaver fells trees"
    assert Document("d", "fells trees").full_text == "fells trees"
    assert Document("d", "", "Beaver").full_text == "Beaver"
    assert Document("d", "").full_text == ""


def test_a_teacher_is_the_same_under_another_name_and_another_with_anything_that_changes_scores() -> None:
    teacher = TeacherIdentity("ours", "cross_encoder", "abc", "logit", {"max_length": 256, "dtype": "float32"})
    assert teacher.fingerprint == TeacherIdentity("theirs", "cross_encoder", "abc", "logit", {"dtype": "float32", "max_length": 256}).fingerprint
    others = [
        TeacherIdentity("ours", "embedding", "abc", "logit", teacher.settings),
        TeacherIdentity("ours", "cross_encoder", "abd", "logit", teacher.settings),
        TeacherIdentity("ours", "cross_encoder", "abc", "cosine", teacher.settings),
        TeacherIdentity("ours", "cross_encoder", "abc", "logit", {"max_length": 128, "dtype": "float32"}),
        TeacherIdentity("ours", "cross_encoder", "abc", "logit"),
    ]
    assert len({teacher.fingerprint, *(other.fingerprint for other in others)}) == 6
    assert len(teacher.fingerprint) == 16
