import numpy as np
import pytest

import grids
from leukemia_dl import Benchmark, Dataset
from leukemia_dl.benchmark.baselines import CellMeasures, measure_cells, predict_baseline
from leukemia_dl.datasets import Split
from leukemia_dl.errors import UnknownNameError

LABELS = np.array([0, 1, 1, 1, 0, 1, 0, 1], dtype=np.int64)
PREDICT = np.arange(6, 8)
SPLIT = Split("fixed", None, np.arange(6), np.arange(0), PREDICT, (), 0, {}, (), "", ())
SIZE = np.log(np.where(LABELS, 30000.0, 20000.0))[:, None] + np.arange(8)[:, None] * 1e-3
CELLS = CellMeasures(np.ones(8, bool), SIZE, np.zeros((8, 6)))


def test_majority_is_the_share_of_the_train_side():
    p, reason = predict_baseline("majority", LABELS, SPLIT, 2, lambda: pytest.fail("not needed"))
    np.testing.assert_array_equal(p, [[2 / 6, 4 / 6]] * 2)
    assert reason == ""


def test_cell_size_separates_sizes_and_colour_does_not():
    p, reason = predict_baseline("cell_size", LABELS, SPLIT, 2, lambda: CELLS)
    assert reason == ""
    np.testing.assert_array_equal(p.argmax(axis=1), LABELS[PREDICT])
    np.testing.assert_allclose(p.sum(axis=1), 1)
    p, _ = predict_baseline("cell_colour", LABELS, SPLIT, 2, lambda: CELLS)
    np.testing.assert_allclose(p, [[2 / 6, 4 / 6]] * 2, atol=1e-3)


def test_a_class_that_is_not_on_the_train_side_has_probability_zero():
    p, _ = predict_baseline("cell_size", LABELS * 2, SPLIT, 3, lambda: CELLS)
    assert p.shape == (2, 3)
    np.testing.assert_array_equal(p[:, 1], 0)


def test_fields_of_view_have_no_cell_size():
    none = CellMeasures(np.zeros(8, bool), np.zeros((8, 4)), np.zeros((8, 6)))
    p, reason = predict_baseline("cell_size", LABELS, SPLIT, 2, lambda: none)
    assert len(p) == 0
    assert "0% of the train images show a single cell" in reason


def test_cells_on_the_train_side_alone_are_not_enough():
    """20, mutant 11: images without a cell on the test side make a baseline of cells not applicable."""
    cells = CellMeasures(np.arange(8) < 6, SIZE, np.zeros((8, 6)))
    p, reason = predict_baseline("cell_size", LABELS, SPLIT, 2, lambda: cells)
    assert len(p) == 0
    assert "0% of the test images show a single cell" in reason


def test_rows_that_are_not_measured_show_no_cell(synthetic_root):
    dataset = grids.dataset(synthetic_root)
    rows = np.array([1, 4])
    some, every = measure_cells(dataset, rows, show_progress=False), measure_cells(dataset, show_progress=False)
    np.testing.assert_array_equal(np.flatnonzero(some.single_cell), rows)
    np.testing.assert_array_equal(some.size[rows], every.size[rows])
    assert not some.size[[0, 2, 3]].any()


def test_an_unknown_name_is_refused_with_the_near_match(synthetic_root):
    with pytest.raises(UnknownNameError, match="Did you mean 'cell_size'"):
        Benchmark(grids.dataset(synthetic_root), ["cnn"], baselines=["cell_sizes"])


def test_measures_of_real_cells_agree_with_the_published_boxes(c_nmc_sample, c_nmc_manifest):
    import pandas as pd

    boxes = pd.read_csv(c_nmc_manifest / "bounding_boxes.csv")
    dataset = Dataset.load("c_nmc_2019", c_nmc_sample)
    dataset = dataset.subset((dataset.table["split"] == "train").to_numpy(bool))
    paths, cells = dataset.paths, measure_cells(dataset, show_progress=False)
    assert cells.single_cell.all()
    name = next(column for column in boxes if boxes[column].astype(str).str.startswith("UID_").any())
    key = boxes[name].astype(str).str.split("/").str[-1]
    known = boxes.set_index(key.str.replace(".bmp", "", regex=False))
    for path, size in zip(paths, cells.size, strict=True):
        if path.stem in known.index:
            box = known.loc[path.stem]
            for measured, said in ((np.exp(size[1]), box["width"]), (np.exp(size[2]), box["height"])):
                assert abs(measured - said) <= 3, path.name
    assert sum(path.stem in known.index for path in paths) >= 50
    # Inside the cell about (70, 30, 80).
    np.testing.assert_allclose(cells.colour[:, :3].mean(axis=0), [70, 30, 80], atol=25)
