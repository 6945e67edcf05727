"""The checks of settings: booleans and NaN are refused, ends belong to intervals as said, and one sentence says so."""

import math

import numpy as np
import pytest

from leukemia_dl.checks import choice, flag, real_number, whole_number
from leukemia_dl.errors import SettingsError

NOT_NUMBERS = [True, False, None, "3", [3], math.nan, 3j, np.bool_(True)]


@pytest.mark.parametrize("value", [*NOT_NUMBERS, 2.0, 1, 11, np.int64(11), -(10**400)])
def test_a_whole_number_of_another_kind_or_outside_is_refused(value):
    with pytest.raises(SettingsError, match=r"^epochs must be a whole number from 2 to 10\. Received: epochs="):
        whole_number("epochs", value, 2, 10)


@pytest.mark.parametrize("value", [2, 10, np.int8(2), np.uint64(10)])
def test_a_whole_number_may_be_either_end_and_is_an_int(value):
    found = whole_number("epochs", value, 2, 10)
    assert (found, type(found)) == (int(value), int)


def test_a_whole_number_without_a_largest_one():
    assert whole_number("epochs", 10**400) == 10**400
    with pytest.raises(SettingsError, match=r"must be a whole number of at least 0\. Received: epochs=-1"):
        whole_number("epochs", -1)


@pytest.mark.parametrize("value", [*NOT_NUMBERS, -0.1, 1.1, math.inf, -math.inf, 10**400, np.float32("nan")])
def test_a_number_of_another_kind_or_outside_is_refused(value):
    with pytest.raises(SettingsError, match=r"^dropout must be a number in \[0, 1\]\. Received: dropout="):
        real_number("dropout", value, 0, 1)


@pytest.mark.parametrize(
    ("ends", "low", "high"), [("[]", True, True), ("[)", True, False), ("(]", False, True), ("()", False, False)]
)
def test_the_ends_of_an_interval_belong_to_it_as_said(ends, low, high):
    for value, allowed in ((0, low), (np.float64(0.0), low), (0.5, True), (1, high)):
        if allowed:
            found = real_number("share", value, 0, 1, ends)
            assert (found, type(found)) == (float(value), float)
        else:
            with pytest.raises(SettingsError) as caught:
                real_number("share", value, 0, 1, ends)
            assert f"in {ends[0]}0, 1{ends[1]}. Received: share={value!r}." in str(caught.value)


def test_infinity_is_a_number_only_where_the_interval_has_it():
    assert real_number("norm", math.inf, 0, math.inf) == math.inf
    with pytest.raises(SettingsError):
        real_number("norm", math.inf, 0, math.inf, "[)")


def test_a_text_is_one_of_those_allowed():
    assert choice("side", "test", ("val", "test")) == "test"
    for wrong in ("Test", "", None, ["test"], 1):
        with pytest.raises(SettingsError, match=r"^side must be one of 'val', 'test'\. Received: side="):
            choice("side", wrong, iter(("val", "test")))


def test_a_flag_is_true_or_false():
    assert (flag("tta", True), flag("tta", False)) == (True, False)
    for wrong in (1, 0, None, "True", np.bool_(True)):
        with pytest.raises(SettingsError, match=r"^tta must be True or False\. Received: tta="):
            flag("tta", wrong)
