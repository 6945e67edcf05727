"""For plugin authors and for tests: `check_backbone`, and Hypothesis strategies (`testing.strategies`)."""

from leukemia_dl.testing.checks import BACKBONE_CHECKS, check_backbone, parametrize_with_checks

__all__ = ["BACKBONE_CHECKS", "check_backbone", "parametrize_with_checks"]
