"""ASHA's decisions, by hand, and that a lost judge is rebuilt from the journal."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from orchestrator.config.schema import AshaConfig
from orchestrator.errors import StorageError
from orchestrator.sweeps.journal import Journal
from orchestrator.sweeps.judge import Judge, judged_epochs

CONFIG = AshaConfig(grace_epochs=1, reduction_factor=2)


def test_trials_are_judged_when_their_age_has_grown() -> None:
    assert judged_epochs(CONFIG, 9) == (1, 2, 4, 8)
    assert judged_epochs(CONFIG, 8) == (1, 2, 4)
    assert judged_epochs(AshaConfig(grace_epochs=2, reduction_factor=3), 20) == (2, 6, 18)


def test_the_worse_half_of_those_seen_is_given_up(tmp_path: Path) -> None:
    judge = Judge(CONFIG, 9, Journal(tmp_path))
    scores = [0.5, 0.4, 0.6, 0.5, 0.1]
    # Each is compared with the median of those before: none, 0.5, 0.45, 0.5, 0.5.
    assert [judge.goes_on(n, 1, score) for n, score in enumerate(scores)] == [
        True, False, True, True, False,
    ]  # fmt: skip
    # At two epochs the first one there has nobody to be compared with.
    assert judge.goes_on(3, 2, 0.2)
    assert judge.goes_on(2, 2, 0.7)
    assert not judge.goes_on(0, 2, 0.3)  # Median of 0.2 and 0.7 is 0.45.


def test_the_same_question_gets_the_same_answer(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    judge = Judge(CONFIG, 9, journal)
    first = [judge.goes_on(n, 1, score) for n, score in enumerate([0.5, 0.4, 0.6])]
    again = [judge.goes_on(n, 1, score) for n, score in enumerate([0.5, 0.4, 0.6])]
    assert again == first
    assert len(journal.entries) == 3


def test_a_judge_that_is_lost_anywhere_decides_as_if_it_were_not(tmp_path: Path) -> None:
    numbers = random.Random(4)
    questions = [(n, age, numbers.random()) for age in (1, 2, 4) for n in range(20)]
    whole = Journal(tmp_path / "whole")
    unbroken = Judge(CONFIG, 9, whole)
    expected = [unbroken.goes_on(*question) for question in questions]
    assert 10 < sum(expected) < 50
    broken = []
    for position, question in enumerate(questions):
        if position % 7 == 0:
            journal = Journal(tmp_path / "broken")
            judge = Judge(CONFIG, 9, journal)
        broken.append(judge.goes_on(*question))
    assert broken == expected


def test_an_unfinished_line_is_cut_off_and_a_damaged_one_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add("judged", trial=1, epoch=1, score=0.5, goes_on=True)
    journal.close()
    with journal.path.open("ab") as file:
        file.write(b'{"kind":"end","tri')
    again = Journal(tmp_path)
    assert [entry.kind for entry in again.entries] == ["judged"]
    again.add("end", trial=1, state="done")
    again.close()
    assert [entry.kind for entry in Journal(tmp_path).entries] == ["judged", "end"]
    data = journal.path.read_bytes()
    journal.path.write_bytes(b"x" + data[1:])
    with pytest.raises(StorageError, match=r"sweep.jsonl:1: this line is damaged"):
        Journal(tmp_path)
