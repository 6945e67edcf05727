"""For plugin authors and for tests, ours and yours: Hypothesis strategies (`leukemia_dl.testing.strategies`).

Nothing in the library itself needs this package; the strategies need the extra `testing`.
"""
