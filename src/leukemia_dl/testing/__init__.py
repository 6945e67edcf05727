"""For plugin authors and for tests, ours and yours: `check_backbone`, and Hypothesis strategies (`testing.strategies`).

Nothing in the library itself needs this package; the strategies need the extra `testing`.
"""

from leukemia_dl.testing.checks import BACKBONE_CHECKS, check_backbone, parametrize_with_checks

__all__ = ["BACKBONE_CHECKS", "check_backbone", "parametrize_with_checks"]
