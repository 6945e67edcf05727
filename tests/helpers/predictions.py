"""Prediction frames drawn at random, with cells of one patient alike."""

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from scipy.special import expit

# Images per group of C-NMC 2019's fold 2, ALL and then HEM: its 31 subjects are 28 groups.
FOLD_2 = (
    (14, 31, 35, 74, 80, 89, 111, 161, 178, 178, 197, 197, 250, 267, 278, 317),
    (20, 29, 30, 32, 36, 46, 50, 100, 137, 140, 149, 327),
)


def clustered(sizes=FOLD_2, backbones=("one", "other"), seeds=(0,), correlation=0.2, distance=1.5, seed=0):
    """Return a prediction frame of two classes, every group of one class, with group effects on the log-odds."""
    random = np.random.default_rng(seed)
    positives, negatives = sizes
    size = np.array([*positives, *negatives])
    label = np.array([1] * len(positives) + [0] * len(negatives))
    group = np.repeat(np.arange(len(size)), size)
    y = label[group]
    shared = random.standard_normal(len(size))
    parts = []
    for name in backbones:
        for run in seeds:
            effect = (shared + random.standard_normal(len(size))) / np.sqrt(2)
            noise = random.standard_normal(len(group))
            x = distance * (y - 0.5) + np.sqrt(correlation) * effect[group] + np.sqrt(1 - correlation) * noise
            p = expit(1.5 * x)
            parts.append(
                pd.DataFrame(
                    {
                        "backbone": name,
                        "seed": run,
                        "fold": 0,
                        "side": "test",
                        "sample": [f"s{i}" for i in range(len(group))],
                        "group": [f"g{i}" for i in group],
                        "label": np.where(y, "all", "hem"),
                        "probability_hem": 1 - p,
                        "probability_all": p,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


@st.composite
def scored(draw, classes=None, largest=40):
    """Draw labels (n,) and probabilities (n, classes), with ties, zeros and ones among them."""
    k = classes or draw(st.integers(2, 4))
    n = draw(st.integers(1, largest))
    labels = np.array(draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)), dtype=np.int64)
    levels = st.sampled_from([0, 0, 1, 2, 3, 5, 20, 1000])
    raw = np.array(draw(st.lists(levels, min_size=n * k, max_size=n * k)), dtype=float).reshape(n, k)
    raw[raw.sum(axis=1) == 0] = 1.0
    return labels, raw / raw.sum(axis=1, keepdims=True)
