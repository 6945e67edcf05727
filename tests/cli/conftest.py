"""A store that the command has written, made once for all tests that read it."""

import pytest

from command import FAST, SIZES, run_process


@pytest.fixture(scope="session")
def finished(synthetic_root, tmp_path_factory):
    """Return a store with its report, and the answer of the process that wrote it."""
    store = tmp_path_factory.mktemp("cli") / "store"
    arguments = [option for option in FAST if option != "--no-report"]
    answer = run_process("benchmark", "--root", synthetic_root, *SIZES, *arguments, "--store", store)
    assert answer.returncode == 0, answer.stderr
    return store, answer
