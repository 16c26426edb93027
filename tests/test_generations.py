"""Which checkpoint speaks: numbers only grow, what waits takes over once, what disappoints is taken back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policytrim_ros.core.generations import Generations, NothingToReturnTo


def speaking(*names, **options):
    generations = Generations(**options)
    for name in names:
        generations.stage(name, f"sha of {name}", name.upper())
        generations.switch()
    return generations


def test_the_first_one_is_not_on_probation_and_the_next_waits_for_the_boundary():
    generations = speaking("a")
    assert (generations.current.number, generations.current.policy, generations.unproved) == (1, "A", 0)
    generations.stage("b", "sha", "B")
    assert generations.current.checkpoint == "a"
    assert generations.switch().number == 2 and generations.switch() is None
    assert generations.unproved == 50 and [g.checkpoint for g in generations.previous] == ["a"]


def test_trouble_on_probation_brings_the_one_before_back_under_a_new_number():
    generations = speaking("a", "b", probation=3)
    assert not generations.said()
    back = generations.trouble()
    assert (back.checkpoint, back.number) == ("a", 3)
    assert generations.trouble() is None  # the old one has proved itself


def test_what_is_being_tried_is_never_the_one_that_has_proved_itself():
    generations = speaking("a")
    assert (generations.tried(""), generations.tried("b"), generations.tried("a")) == ("", "b", "")
    generations.stage("b", "sha", "B")
    assert generations.tried("") == "b"
    generations.switch()
    assert (generations.tried(""), generations.tried("a"), generations.tried("c")) == ("b", "b", "c")  # b is on probation


def test_after_its_probation_trouble_is_not_blamed_on_the_policy():
    generations = speaking("a", "b", probation=2)
    assert [generations.said(), generations.said(), generations.said()] == [False, True, False]
    assert generations.trouble() is None and generations.current.checkpoint == "b"


def test_the_last_good_one_is_the_first_what_has_proved_itself_and_what_the_operator_went_back_to():
    generations = speaking("a", "b", probation=2, keep=2)
    assert generations.good.checkpoint == "a"
    generations.said(), generations.said()
    assert generations.good.checkpoint == "b"
    generations.stage("c", "sha", "C")
    generations.switch()
    assert generations.good.checkpoint == "b"
    generations.trouble()
    assert generations.good.checkpoint == generations.current.checkpoint == "b"
    generations.roll_back()
    assert generations.good.checkpoint == "a"


def test_one_that_comes_back_unproved_is_on_probation_again():
    generations = speaking("a", "b", "c", keep=2, probation=3)
    assert generations.trouble().checkpoint == "b" and generations.unproved == 3 and generations.good.checkpoint == "a"
    assert generations.trouble().checkpoint == "a" and generations.unproved == 0


def test_the_numbers_of_a_process_before_are_not_used_again():
    generations = speaking("a")
    generations.follow(4)
    assert (generations.current.number, generations.current.policy) == (5, "A")
    generations.follow(3), generations.follow(5)
    assert generations.current.number == 5
    generations.stage("b", "sha", "B")
    assert generations.switch().number == 6


def test_only_so_many_earlier_ones_are_kept():
    assert [g.checkpoint for g in speaking("a", "b", "c", "d", keep=2).previous] == ["b", "c"]
    with pytest.raises(NothingToReturnTo):
        speaking("a", "b", keep=0).roll_back()
    assert speaking("a", "b", keep=0).trouble() is None


def test_rolling_back_forgets_what_waited():
    generations = speaking("a", "b")
    generations.stage("c", "sha", "C")
    generations.roll_back()
    assert generations.switch() is None and generations.current.checkpoint == "a"


@given(st.lists(st.sampled_from(["stage", "switch", "said", "trouble", "roll_back"]), max_size=40), st.integers(0, 3))
def test_numbers_only_grow_and_somebody_always_speaks(events, keep):
    generations, numbers = speaking("first", keep=keep, probation=4), [1]
    for count, event in enumerate(events):
        if event == "stage":
            generations.stage(str(count), "sha", count)
        else:
            try:
                getattr(generations, event)()
            except NothingToReturnTo:
                assert not generations.previous
        if generations.current.number != numbers[-1]:
            numbers.append(generations.current.number)
        assert len(generations.previous) <= keep and 0 <= generations.unproved <= 4
    assert numbers == sorted(set(numbers))
