"""Checks of settings and arguments. Each raises SettingsError with the allowed values and the received one."""

import importlib
import math
import numbers
from collections.abc import Iterable
from typing import Any

from leukemia_dl.errors import SettingsError


def whole_number(name: str, value: Any, low: int = 0, high: int | None = None) -> int:
    """Return a whole number, low <= value <= high, as `int`; booleans and whole floats are refused."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not low <= value <= (math.inf if high is None else high):
        allowed = f"of at least {low}" if high is None else f"from {low} to {high:,}"
        raise SettingsError(f"{name} must be a whole number {allowed}. Received: {name}={value!r}.")
    return int(value)


def real_number(name: str, value: Any, low: float, high: float, ends: str = "[]") -> float:
    """Return a number in an interval as `float`; `ends`, such as "(]", says which ends belong to it. NaN is refused."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    open_ends = [end for end, sign in ((low, ends[0]), (high, ends[1])) if sign in "()"]
    if not number or not low <= value <= high or value in open_ends:
        allowed = f"{ends[0]}{low:g}, {high:g}{ends[1]}"
        raise SettingsError(f"{name} must be a number in {allowed}. Received: {name}={value!r}.")
    return float(value)


def choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return one of several texts."""
    allowed = list(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise SettingsError(f"{name} must be one of {', '.join(map(repr, allowed))}. Received: {name}={value!r}.")
    return value


def flag(name: str, value: Any) -> bool:
    """Return True or False; no other value will do."""
    if not isinstance(value, bool):
        raise SettingsError(f"{name} must be True or False. Received: {name}={value!r}.")
    return value


def import_extra(module: str, extra: str) -> Any:
    """Return a module that is there with an extra of the package; SettingsError says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SettingsError(f"{error}. Install it: pip install 'leukemia-dl[{extra}]'.") from error
