"""Digests of settings and named seeds, which depend on values only; plain numbers; spellings of patients' names."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np

UNKNOWN_NAMES = frozenset({"", "-", "?", "#n/a", "<na>", "n/a", "na", "nan", "none", "null", "unknown"})


def canonical_json(value: Any) -> str:
    """Return nested dicts, lists and plain values as JSON that is equal for equal values; others raise an error."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def digest(value: Any) -> str:
    """Return the SHA-256 of `canonical_json(value)` as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def named_seed(seed: int, *names: str | int) -> int:
    """Return the seed in [0, 2**32) of one axis of randomness, such as `named_seed(0, "weights", "fold", 2)`."""
    return int(digest([seed, *names])[:8], 16)


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a numpy generator (PCG64) for one named axis of randomness."""
    return np.random.Generator(np.random.PCG64(int(digest([seed, *names]), 16)))


def plain_number(value: Any) -> Any:
    """Return a number of numpy or another library as Python's int or float; anything else unchanged."""
    if isinstance(value, bool):
        return value
    return int(value) if isinstance(value, Integral) else float(value) if isinstance(value, Real) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Real):
        return plain_number(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON. Received: {value!r}.")


def whole_numbers(values: object) -> list[int] | None:
    """Return a whole number or several as a list; None for anything else."""
    listed = list(map(plain_number, values)) if isinstance(values, Iterable) else [plain_number(values)]
    return listed if all(type(value) is int for value in listed) else None


def is_unknown(name: Any) -> bool:
    """Return whether a patient's name is empty or a word for an unknown one, such as "n/a" or "-"."""
    return name is None or str(name).strip().lower() in UNKNOWN_NAMES


def name_key(name: str) -> str:
    """Return a key that is equal for spellings of a name that differ only in case, spaces or a trailing `.0`."""
    text = " ".join(unicodedata.normalize("NFC", name).casefold().split())
    return re.sub(r"^([0-9]+)\.0+$", r"\1", text)
