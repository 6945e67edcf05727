"""Each plot on fixed data, compared with a picture of it that was looked at.

After a change that is meant: `python tests/reporting/test_appearance.py` writes the pictures anew; look at them.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import leukemia_dl as ldl
from leukemia_dl import reporting
from predictions import clustered

PICTURES = Path(__file__).parent / "pictures"
_SIZES = ((8, 9, 10, 11, 12, 20), (7, 8, 9, 10, 30))
_NETS = clustered(_SIZES, seeds=(0, 1)).assign(kind="backbone", protocol="kfold")
_BASELINE = clustered(_SIZES, backbones=("size",), distance=0.3).assign(kind="baseline", protocol="kfold", seed=None)
_ALL = pd.concat([_NETS, _BASELINE], ignore_index=True).astype({"seed": "Int64"})
_ALL["cell_area"] = _ALL["sample"].str[1:].astype(int) * 7.0 % 301 + 100
_TIMINGS = pd.DataFrame({"backbone": ["one", "other"], "fit_seconds": [12.0, 340.0]})


def _results():
    rows = []
    for (name, seed), part in _ALL.groupby(["backbone", "seed"], dropna=False, sort=False):
        labels = (part["label"] == "all").to_numpy().astype(np.int64)
        scores = ldl.score(labels, part[["probability_hem", "probability_all"]].to_numpy())
        recipe = None if name == "size" else "quick"
        rows.append({"backbone": name, "seed": seed, **scores, "recipe": recipe, "status": "ok", "protocol": "kfold"})
    return pd.DataFrame(rows)


def _histories():
    rows = []
    for place, name in enumerate(("one", "other")):
        for seed in (0, 1):
            for epoch in range(1, 7):
                rise = 1 - 0.5 / epoch
                rows.append(
                    {"trial": f"{name}-{seed}", "backbone": name, "epoch": epoch, "accuracy": rise, "loss": 0.7 / epoch,
                     "val_accuracy": rise - 0.05 * (place + seed), "val_loss": 0.6 / epoch + 0.1 * (place + seed)}
                )  # fmt: skip
    return pd.DataFrame(rows)


def _inflation():
    leaky = _NETS.assign(protocol="random", seed=_NETS["seed"])
    p = np.clip(leaky["probability_all"] + np.where(leaky["label"] == "all", 0.15, -0.15), 0, 1)
    leaky = leaky.assign(probability_all=p, probability_hem=1 - p)
    return ldl.inflation(pd.concat([_NETS, leaky]), "kfold", "random")


def _samples():
    y, x = np.mgrid[:24, :24]
    images = [np.stack([x * 10, y * 10, np.full_like(x, 20 * k)], axis=-1).astype(np.uint8) for k in range(7)]
    return reporting.plot_samples(images, list("abcdefg"), columns=4, title="T")


PLOTS = {
    "samples": _samples,
    "learning_curves": lambda: reporting.plot_learning_curves(_histories(), "T"),
    "comparison": lambda: reporting.plot_comparison(_results(), title="T"),
    "comparison_intervals": lambda: reporting.plot_comparison(_results(), title="T", intervals=ldl.evaluate(_ALL)),
    "inflation": lambda: reporting.plot_inflation(_inflation(), "T"),
    "roc": lambda: reporting.plot_roc(_ALL, "T"),
    "precision_recall": lambda: reporting.plot_precision_recall(_ALL, "T"),
    "confusion": lambda: reporting.plot_confusion(_ALL, "T"),
    "reliability": lambda: reporting.plot_reliability(_ALL, "T"),
    "subjects": lambda: reporting.plot_subjects(_ALL, title="T"),
    "cost": lambda: reporting.plot_cost(ldl.leaderboard(_ALL, timings=_TIMINGS), title="T"),
    "errors_by_size": lambda: reporting.plot_errors_by_size(_ALL, title="T"),
}


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_looks_as_it_did_when_it_was_looked_at(name, tmp_path):
    from matplotlib.testing.compare import compare_images

    drawn = tmp_path / f"{name}.png"
    PLOTS[name]().savefig(drawn, dpi=60)
    # Another release of matplotlib may move a pixel or two; what is missing or elsewhere differs by more.
    assert compare_images(str(PICTURES / f"{name}.png"), str(drawn), tol=6) is None


def test_the_comparison_notices_a_change(tmp_path):
    from matplotlib.testing.compare import compare_images

    drawn = tmp_path / "roc.png"
    reporting.plot_roc(_ALL, "T", level=0.5).savefig(drawn, dpi=60)  # narrower bands
    assert compare_images(str(PICTURES / "roc.png"), str(drawn), tol=6) is not None


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for picture, draw in PLOTS.items():
        draw().savefig(PICTURES / f"{picture}.png", dpi=60)
