import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leukemia_dl.identity import canonical_json, digest, generator, named_seed, plain_number

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(plain)
def test_canonical_json_reads_back_and_is_stable(value):
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


@given(st.dictionaries(st.text(max_size=6), st.integers(), min_size=2, max_size=6))
def test_digest_ignores_the_order_of_keys(mapping):
    assert digest(dict(reversed(mapping.items()))) == digest(mapping)


@pytest.mark.parametrize(
    ("value", "plain"),
    [(np.int8(3), 3), (np.float32(0.5), 0.5), (np.bool_(True), np.bool_(True)), (True, True), ("3", "3"), (None, None)],
)
def test_numbers_of_numpy_become_those_of_python(value, plain):
    found = plain_number(value)
    assert found == plain
    assert type(found) is type(plain)


def test_digest_is_a_known_one():
    # SHA-256 of {"a":[1,2.5,null],"b":"\u00e9"}, so that a change of format cannot go unseen.
    import hashlib

    assert digest({"b": "é", "a": (1, 2.5, None)}) == hashlib.sha256(b'{"a":[1,2.5,null],"b":"\\u00e9"}').hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {"a": {1, 2}}, b"bytes"])
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        canonical_json(value)


def test_numpy_scalars_equal_python_ones():
    assert canonical_json([np.int64(3), np.float64(0.5), np.float32(0.5)]) == canonical_json([3, 0.5, 0.5])


def test_axes_are_independent_and_repeatable_across_processes():
    program = (
        "from leukemia_dl.identity import generator, named_seed;"
        "print(named_seed(7, 'order', 2), generator(7, 'order', 2).integers(0, 10**9))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert [int(word) for word in answer] == [named_seed(7, "order", 2), generator(7, "order", 2).integers(0, 10**9)]
    seeds = {named_seed(s, *axis) for s in range(20) for axis in [("a",), ("b",), ("a", 1), ("a", "1"), ("a", 1, 2)]}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**32 for seed in seeds)
