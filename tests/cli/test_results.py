"""`leukemia-dl evaluate | report`: tables of predictions, and the page of a store."""

import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import command
import leukemia_dl as ldl
import stores
from leukemia_dl.cli import app
from leukemia_dl.errors import DataError, SettingsError, StoreError, UnknownNameError
from predictions import clustered

SMALL = ((5, 9, 12, 30, 8, 20), (7, 3, 25, 11, 6))


@pytest.fixture
def run():
    def run(*arguments):
        result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output

    return run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "predictions.csv"
    clustered(SMALL, ["cnn", "vgg16", "xception"]).to_csv(path, index=False)
    return path


def test_the_table_and_a_sentence_per_pair_are_printed(run, file):
    output = run(file, "--metric", "auroc")
    table = ldl.leaderboard(clustered(SMALL, ["cnn", "vgg16", "xception"]), "auroc")
    for value in table[["auroc", "low", "high"]].to_numpy().ravel():
        assert f"{value:.3f}" in output
    assert output.count("\n- On 136 images of 11 groups of patients, AUROC is") == 3
    assert "best of 3 on this side" in output


def test_where_nothing_can_be_tested_the_reason_is_the_first_line(run, tmp_path):
    """20.3: no rank, no interval and no verdict with fewer than five groups; the reason and their number come first."""
    clustered(((5, 9, 12), (7, 3)), ["cnn", "vgg16"]).to_csv(tmp_path / "few.csv", index=False)
    first, *rest = run(tmp_path / "few.csv").splitlines()
    reason = "fewer than 5 groups: 2 of class hem, 3 of class all"
    assert first == f"Not testable, {reason} (36 images of 5 groups of patients): no ranks and no intervals."
    output = "\n".join(rest)
    assert "accuracy, side test, without intervals" in output
    assert "Not testable" not in output
    assert reason not in output  # once is enough
    for verdict in ("rank", "intervals are", "best of", "better"):
        assert verdict not in output


def test_a_store_is_read_with_its_costs(run, tmp_path):
    stores.made_up(tmp_path, stores.cells(), ["cnn", "vgg16"])
    output = run(tmp_path)
    assert "4000" in output  # parameters of cnn
    assert "15" in output  # seconds of vgg16


def test_records_are_the_truth_and_exports_are_not_read(run, tmp_path):
    """20.2: after a second run in Python, `evaluate STORE` shows its trials too, whatever predictions.csv holds."""
    first = stores.made_up(tmp_path, stores.cells(), ["cnn"])
    first.predictions().to_csv(tmp_path / "predictions.csv", index=False)
    for name in ("results", "timings"):
        (tmp_path / f"{name}.csv").write_text("backbone,parameters,fit_seconds,status\ncnn,77777,88888,failed\n")
    both = stores.made_up(tmp_path, stores.cells(), ["cnn"], seeds=[0, 1], learned=0.1)
    output = run(tmp_path)
    expected = ldl.leaderboard(both.predictions()).set_index("backbone")["accuracy"]
    (row,) = [line for line in output.splitlines() if "│ cnn " in line]
    assert [cell.strip() for cell in row.split("│")][2:5] == [f"{expected['cnn']:.3f}", "2", "2"]  # trials, seeds
    assert not any(text in output for text in ("77777", "88888", "failed"))


def test_costs_and_flags_are_of_the_trials_that_are_evaluated(run, tmp_path):
    """20.2: neither failures nor costs of other benchmarks or protocols of a store are shown."""
    dataset = stores.cells()
    stores.made_up(tmp_path, dataset, ["cnn"], recipe="quick", seeds=[0, 1], failed=[1])
    good = stores.made_up(tmp_path, dataset, ["cnn"], recipe="from_scratch", protocol=["holdout", "kfold"], failed=[4])
    assert "1 failed" in run(tmp_path / "grids" / grid_of("quick", tmp_path))
    folder = tmp_path / "grids" / grid_of("from_scratch", tmp_path)
    assert "failed" not in run(folder, "--protocol", "holdout")
    assert "1 failed" in run(folder, "--protocol", "kfold")
    assert folder.name in str(good.stored().folder)


def grid_of(recipe, store):
    return next(
        p.name for p in (store / "grids").iterdir() if f'name = "{recipe}"' in (p / "settings.toml").read_text()
    )


def test_a_sweep_in_one_store_asks_for_one_benchmark(run, tmp_path):
    """20.7: two learning rates in one store are never one row; the error names the folder and settings of each."""
    for rate in (0.003, 0.01):
        recipe = ldl.Recipe.preset("quick", learning_rate=rate)
        stores.made_up(tmp_path, stores.cells(), ["cnn"], recipe=recipe)
    with pytest.raises(StoreError, match=r"learning_rate=0\.003.*learning_rate=0\.01"):
        run(tmp_path)


def test_one_of_several_protocols_is_chosen(run, tmp_path):
    frames = [
        clustered(SMALL, ["cnn", "vgg16"]).assign(protocol="kfold"),
        clustered(SMALL, ["cnn", "vgg16"], seed=5).assign(protocol="random"),
    ]
    pd.concat(frames).to_csv(tmp_path / "both.csv", index=False)
    with pytest.raises(DataError, match="protocol"):
        run(tmp_path / "both.csv")
    value = ldl.leaderboard(frames[1])["accuracy"].iloc[0]
    assert f"{value:.3f}" in run(tmp_path / "both.csv", "--protocol", "random")
    with pytest.raises(UnknownNameError, match="Did you mean 'random'"):
        run(tmp_path / "both.csv", "--protocol", "ramdom")


def test_every_metric_goes_to_a_file(run, file, tmp_path):
    run(file, "--csv", tmp_path / "all.csv")
    written = pd.read_csv(tmp_path / "all.csv")
    expected = ldl.evaluate(clustered(SMALL, ["cnn", "vgg16", "xception"]))
    assert list(written) == list(expected)
    np.testing.assert_allclose(written["low"], expected["low"])


def test_a_class_called_na_is_a_class(run, tmp_path):
    frame = (
        clustered(SMALL, ["cnn"])
        .replace({"label": {"all": "NA"}})
        .rename(columns={"probability_all": "probability_NA"})
    )
    frame.to_csv(tmp_path / "p.csv", index=False)
    assert "cnn" in run(tmp_path / "p.csv")


def test_one_model_without_groups_has_intervals_over_images(run, tmp_path):
    clustered(SMALL, ["cnn"])[["label", "probability_hem", "probability_all"]].to_csv(tmp_path / "p.csv", index=False)
    output = run(tmp_path / "p.csv")
    assert "low" in output
    assert "these fitted models on new images" in output


def test_what_cannot_be_read_is_one_clear_error(run, file, tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        run(tmp_path / "nothing.csv")
    with pytest.raises(SettingsError, match=r"metric must be one of.*'speed'"):
        run(file, "--metric", "speed")
    with pytest.raises(StoreError, match="there is no folder"):
        run(file, "--csv", tmp_path / "no" / "all.csv")
    for text in ("", "a,b\n1,2\n", "label,probability_a\nx,1\n"):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(DataError):
            run(tmp_path / "bad.csv")
    (tmp_path / "bad.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\x00")
    with pytest.raises(DataError):
        run(tmp_path / "bad.csv")
    (tmp_path / "bad.csv").write_text("label,probability_a,probability_b\na,yes,no\n")
    with pytest.raises(DataError, match="numbers"):
        run(tmp_path / "bad.csv")


def test_a_store_that_python_made_has_no_such_file_and_is_read_all_the_same(run, tmp_path):
    stores.made_up(tmp_path / "s", stores.cells(), ["cnn"])
    assert "cell_size" in run(tmp_path / "s")
    stores.made_up(tmp_path / "t", stores.cells(), ["cnn"], failed=range(4))
    with pytest.raises(DataError, match="no trial was finished"):
        run(tmp_path / "t")


def test_a_benchmark_ends_with_its_report_and_cards(finished):
    store, answer = finished
    assert f"Report:   {store / 'report.html'}" in answer.stdout
    assert f"Cards:    {store / 'cards'} (1)" in answer.stdout
    text = (store / "report.html").read_text()
    assert "Every image was checked" in text
    assert (store / "audit.json").is_file()


def test_the_report_is_rebuilt_from_the_store_alone(finished, tmp_path):
    store, _ = finished
    page = (store / "report.html").read_bytes()
    copy = tmp_path / "sent"
    shutil.copytree(store, copy)
    (copy / "report.html").unlink()
    answer = command.run("report", copy)
    assert answer.returncode == 0, answer.stderr
    assert (copy / "report.html").read_bytes() == page


def test_a_data_set_that_has_moved_is_found_by_root(finished, synthetic_root, tmp_path):
    store, _ = finished
    copy = tmp_path / "sent"
    shutil.copytree(store, copy)
    settings = stores.run_folder(copy) / "settings.toml"
    settings.write_text(settings.read_text().replace(f'root = "{synthetic_root}', 'root = "/nowhere'))
    answer = command.run("report", copy, "--output", tmp_path / "without.html", "--no-cards")
    assert answer.returncode == 0, answer.stderr
    assert "This page has no images" in (tmp_path / "without.html").read_text()
    answer = command.run("report", copy, "--root", synthetic_root, "--output", tmp_path / "with.html", "--no-cards")
    assert "This page has no images" not in (tmp_path / "with.html").read_text()
    assert "Cards" not in answer.stdout
    answer = command.run("report", copy, "--output", tmp_path / "no" / "a.html")
    assert "there is no folder" in answer.stderr


def test_what_is_wrong_is_said(tmp_path):
    assert "is not the store of a benchmark" in command.fails("report", tmp_path)
    stores.made_up(tmp_path / "s", stores.cells())
    assert "there is no folder" in command.fails("report", tmp_path / "s", "--output", tmp_path / "no" / "x.html")
