"""`leukemia-dl benchmark`: its options and errors, what it prints and what it leaves in the store."""

import io
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest

import grids
import leukemia_dl as ldl
from command import FAST, SIZES, fails, run
from leukemia_dl.evaluation import probe
from leukemia_dl.models import backbones as registry
from pages import page_of


def test_benchmark_tells_and_leaves_everything(finished):
    store, answer = finished
    for line in (
        "[3/4] cell_colour-official_clean-fold2: accuracy ",
        "cnn-official_clean-fold2-seed0: epoch 1/1  loss ",
    ):
        assert line in answer.stderr
    assert "WARNING" not in answer.stderr
    assert "oneDNN" not in answer.stderr
    assert "synthetic cells, not real ones" in answer.stdout
    for name in ("cnn", "majority", "cell_size", "cell_colour"):
        assert name in answer.stdout
    left = {path.name for path in store.iterdir()}
    assert left == {
        "results.csv", "timings.csv", "predictions.csv", "settings.toml", "trials", "comparison.png",
        "learning_curves.png", "samples.png", "logs", "grids", "report.html", "cards", "audit.json",
    }  # fmt: skip
    assert (pd.read_csv(store / "results.csv")["status"] == "ok").all()
    assert set(pd.read_csv(store / "predictions.csv")["side"]) == {"val", "test"}
    for picture in store.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--backbones", "resnet5"], "no backbone 'resnet5'. Did you mean 'resnet50'?"),
        (["--recipe", "quik"], "no recipe 'quik'. Did you mean 'quick'?"),
        (["--embeddings", "a"], "--embeddings takes NAME=FILE, each name once. Received: a."),
        (["--embeddings", "a=b.npz"], "The embeddings 'a' cannot be read from b.npz"),
        (["-s", "epoch=3"], "no recipe setting 'epoch'. Did you mean 'epochs'?"),
        (["-s", "epochs"], "--set takes KEY=VALUE. Received: 'epochs'"),
        (["--dataset", "cnmc"], "no data set 'cnmc'"),
        (["--dataset", "c_nmc_2019"], "--root PATH"),
        (["-o", "subject=3"], "no option 'subject'"),
        (["-o", "subjects=3"], "subjects"),
        (["--image-size", "64"], "inception_v3 needs images of at least 75 x 75 pixels"),
        (["-s", "weights=vgg16=imagenet"], "weights does not name resnet50"),
        (["-s", "weights=vgg16=own,cnn=random", "--backbones", "vgg16"], "Allowed: None, 'imagenet', or the path"),
        (["--recipe", "mine.toml"], "The recipe mine.toml cannot be read: No such file"),
        (["--recipe", "linear_probe"], "cnn has no weights for 'linear_probe': leave it out"),
        (["--device", "tpu"], "device must be 'auto', 'cpu', 'gpu' or 'gpu:N'"),
        (["-s", "callbacks=nothing"], 'a function, "module:function" or a list'),
        (["--recipe", "linear_probe", "-s", "select_epoch=maybe"], "select_epoch must be True or False"),
        (["-o", "workers=-1"], "workers must be a whole number"),
        (["-o", "images=1000000000"], " to 100,000"),
        (["--dataset", "folder", "--root", "x" * 300], "File name too long"),
        (["--seeds", "a"], "seeds must be a whole number from 0 to 4,294,967,295. Received: seeds='a'"),
        (["--folds", "x"], "`folds` is \"all\" or some of 0, 1, 2, each once. Received: ['x']"),
        (["-s", "weights=nothing.h5", "--backbones", "cnn"], "there is no such file"),
        (["--executor", "fast"], "executor"),
        (["--shard", "3/2"], "shard must be 'i/n' with i from 1 to n"),
        (["--workers", "0"], "workers must be a whole number of at least 1"),
        (["--workers", "2", "--executor", "in-process"], "workers belongs to executor='processes'"),
        (["--workers", "2", "--executor", "ray"], "workers belongs to executor='processes'"),
        (["--protocol", "kfold,kfold", *FAST], "protocol must be a list of names, at least 1, none twice"),
        (["--protocol", ",", *FAST], "protocol must be a list of names, at least 1, none twice"),
        (["--time-limit", "0", *FAST], "time_limit must be a number in (0, inf)"),
        (["mine.toml"], "mine.toml cannot be read"),
        (["mine.toml", "--seeds", "0"], "--seeds is a setting in the file mine.toml: change it there"),
        (["mine.toml", "-o", "subjects=3", "--plan"], "--dataset-option is a setting in the file mine.toml"),
        (["runs/first"], "runs/first cannot be read"),
    ],
)
def test_a_wrong_setting_is_one_plain_line(arguments, says, synthetic_root, tmp_path):
    named = {"--dataset", "-o", "mine.toml", "runs/first"} & {*arguments}
    cells = [] if named else ["--root", synthetic_root, *SIZES]
    assert says in fails("benchmark", *arguments, *cells, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dataset", ["c_nmc_2019", "folder", "csv"])
@pytest.mark.parametrize("what", ["missing", "empty", "zip"])
def test_a_wrong_root_is_one_plain_line(dataset, what, tmp_path):
    root = tmp_path / "the-root.zip"
    if what == "empty":
        root.mkdir()
    if what == "zip":
        with zipfile.ZipFile(root, "w") as archive:
            archive.writestr("all/1.bmp", b"x" * 100)
    error = fails("benchmark", "--dataset", dataset, "--root", root, cwd=tmp_path)
    assert "the-root" in error
    if what == "zip":
        assert any(word in error for word in ("npack", "archive", "cannot be read as CSV"))


def test_a_folder_with_one_class(tmp_path, write_image):
    write_image(tmp_path / "data" / "all" / "1.png")
    error = fails("benchmark", "--dataset", "folder", "--root", tmp_path / "data", cwd=tmp_path)
    assert "class" in error
    assert "all" in error


def test_a_truncated_bmp_is_named(tmp_path, write_image):
    for number in range(30):
        write_image(tmp_path / "data" / "ab"[number % 2] / f"{number}.bmp", number=number)
    victim = tmp_path / "data" / "a" / "4.bmp"
    victim.write_bytes(victim.read_bytes()[:100])
    leak = ["--protocol", "random", "--allow-leakage"]
    error = fails(
        "benchmark", "--dataset", "folder", "--root", tmp_path / "data", *FAST, *leak, "--store", tmp_path / "s"
    )
    assert str(victim) in error


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("path,label\ngone.png,a\n1.png,b\n", "gone.png"),
        ("path,label\n1.png,\n1.png,b\n", "label"),
        ("file,label\n1.png,a\n", "path"),
        ("", "empty"),
    ],
)
def test_a_bad_csv(tmp_path, write_image, rows, says):
    write_image(tmp_path / "1.png")
    (tmp_path / "table.csv").write_text(rows)
    assert says in fails("benchmark", "--dataset", "csv", "--root", tmp_path / "table.csv", cwd=tmp_path)


def test_a_store_that_cannot_be_written(tmp_path, synthetic_root):
    (tmp_path / "store").write_text("")
    error = fails("benchmark", "--root", synthetic_root, *SIZES, *FAST, "--store", tmp_path / "store")
    assert "cannot be written" in error
    assert "--store" in error


def test_without_subjects_the_choice_is_named(tmp_path, write_image):
    for number in range(20):
        write_image(tmp_path / "data" / "ab"[number % 2] / f"{number}.png", number=number)
    error = fails("benchmark", "--dataset", "folder", "--root", tmp_path / "data", cwd=tmp_path)
    assert "--allow-leakage" in error


def test_a_printed_recipe_is_a_file_to_change_and_run(synthetic_root, tmp_path):
    listed = run("recipes").stdout
    for name in ("finetune", "from_scratch", "linear_probe", "quick", "published_v1"):
        assert name in listed
    text = run("recipes", "quick").stdout
    (tmp_path / "mine.toml").write_text(text + 'callbacks = "beside:make"\n')
    (tmp_path / "beside.py").write_text("def make(context):\n    print('made for', context.backbone)\n    return []\n")
    answer = run(
        "benchmark", "--root", synthetic_root, *SIZES, *FAST, "--recipe", "mine.toml", "--baselines", "",
        "--store", "store", cwd=tmp_path,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "made for cnn" in answer.stdout
    row = pd.read_csv(tmp_path / "store" / "results.csv").iloc[0]
    assert (row["recipe"], row["epochs"], row["image_size"]) == ("mine", 1, 32)
    # The same answers in both ways, calibrated or not.
    image = next(synthetic_root.rglob("*.bmp"))
    frames = [
        pd.read_csv(io.StringIO(run("predict", "store", image, *flags, cwd=tmp_path).stdout))
        for flags in ([], ["--uncalibrated"], ["--tta"])
    ]
    calibrated, uncalibrated, averaged = (frame["probability_all"].iloc[0] for frame in frames)
    assert calibrated == uncalibrated  # val has too few patients for a temperature
    assert averaged != calibrated
    assert len({frame["predicted"].iloc[0] for frame in frames[:2]}) == 1


def test_the_plan_runs_nothing(finished, synthetic_root, tmp_path):
    store = shutil.copytree(finished[0], tmp_path / "store")
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    arguments = ["benchmark", "--root", synthetic_root, *SIZES, *FAST, "--store", store, "--plan"]
    shown = run(*arguments, "--seeds", "0,1").stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    assert rows == [
        ["cnn", "official_clean", "2", "0", "ok"],
        ["cnn", "official_clean", "2", "1", "to do"],
        *([name, "official_clean", "2", "", "ok"] for name in ("majority", "cell_size", "cell_colour")),
    ]
    assert shown.splitlines()[-1] == "To do: 1 of 5 trials."
    assert "To do: 3 of 3 trials." in run(*arguments, "--seeds", "0,1", "--rerun", "--shard", "1/2").stdout
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    next(store.rglob("model.keras")).unlink()
    shown = run(*arguments).stdout
    assert "no model" in shown
    assert "To do: 1 of 4 trials" in shown
    arguments[-2] = tmp_path / "nothing"
    assert "To do: 4 of 4 trials." in run(*arguments).stdout
    assert not (tmp_path / "nothing").exists()


def test_a_settings_file_repeats_a_run(finished, synthetic_root, tmp_path):
    text = (finished[0] / "settings.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("[benchmark]", '[benchmark]\ncallbacks = "near:make"', 1))
    (tmp_path / "near.py").write_text("def make(context):\n    print('made for', context.backbone)\n    return []\n")
    answer = run(
        "benchmark", "mine.toml", "--root", synthetic_root, "--store", "here", "--executor", "in-process",
        "--no-report", cwd=tmp_path,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "made for cnn" in answer.stdout
    first, again = (pd.read_csv(store / "results.csv") for store in (finished[0], tmp_path / "here"))
    pd.testing.assert_frame_equal(first.drop(columns="flags"), again.drop(columns="flags"), check_exact=True)
    assert "callbacks: make" in again["flags"].str.cat()


@pytest.mark.slow
def test_shards_of_several_protocols_make_one_table_and_one_report(synthetic_root, tmp_path):
    fast = [option for option in FAST if option != "--no-report"]
    arguments = ["benchmark", "--root", synthetic_root, *SIZES, *fast, "--store", tmp_path / "s"]
    arguments += ["--protocol", "official_clean, holdout", "--executor", "in-process"]
    planned = run(*arguments, "--shard", "1/2", "--plan")
    assert planned.stdout.count(" cnn ") == 1, "what a part plans is what it runs"
    assert "To do: 4 of 4 trials" in planned.stdout
    half = run(*arguments, "--shard", "1/2")
    assert half.returncode == 0, half.stderr
    assert "[4/4] cnn-official_clean-fold2-seed0: accuracy " in half.stderr
    assert "4 trials of this grid are not in the store yet" in half.stdout
    assert "Report:   when all parts are done" in half.stdout
    assert not (tmp_path / "s" / "report.html").exists()
    assert len(pd.read_csv(tmp_path / "s" / "results.csv")) == 4
    whole = run(*arguments, "--shard", "2/2")
    assert whole.returncode == 0, whole.stderr
    assert "not in the store yet" not in whole.stdout
    assert f"Report:   {tmp_path / 's' / 'report.html'}" in whole.stdout
    results = pd.read_csv(tmp_path / "s" / "results.csv")
    assert list(results["protocol"]) == ["official_clean"] * 4 + ["holdout"] * 4
    header = next(line for line in whole.stdout.splitlines() if "backbone" in line)
    assert header.split()[1:5:2] == ["backbone", "protocol"]


def test_a_trial_that_takes_too_long_has_failed(synthetic_root, tmp_path):
    arguments = ["benchmark", "--root", synthetic_root, *SIZES, *FAST, "--store", tmp_path / "s", "--baselines", ""]
    arguments += ["--executor", "processes", "--workers", "1", "--time-limit", "0.2"]
    says = "failed: TimeLimitError: It took longer than 0.2 s and was killed."
    answer = run(*arguments)  # a table in which nothing has an accuracy
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert says in answer.stdout
    assert "failed" in run("runs", "list", tmp_path / "s").stdout


def test_features_from_a_file_over_shots_give_rows_a_report_and_the_same_run_again(synthetic_root, tmp_path):
    dataset = grids.dataset(synthetic_root)
    pixels = dataset.to_numpy(dataset.default_pipeline(32))
    np.savez(tmp_path / "mine.npz", sample=dataset.table["sample"].to_numpy(str), features=grids.encode(pixels))
    own, store = ["--embeddings", f"mine={tmp_path / 'mine.npz'}"], tmp_path / "s"
    asked = ["--recipe", "linear_probe", "--protocol", "kfold", "--folds", "0", "--shots", "2,all", "--no-report"]
    answer = run("benchmark", "--root", synthetic_root, *SIZES, *own, *asked, "--store", store)
    assert answer.returncode == 0, answer.stderr
    results = pd.read_csv(store / "results.csv").query("backbone == 'mine'")
    assert results["protocol"].tolist() == ["kfold-2shot", "kfold"]
    assert results["accuracy"].notna().all()
    registry._registered.clear()  # as in a new process
    assert "There is no backbone 'mine'" in fails("benchmark", store / "settings.toml", "--plan")
    assert " protocol " in answer.stdout.split("Test side")[1].splitlines()[2]
    again = run("benchmark", store / "settings.toml", *own, "--plan")
    assert "To do: 0 of 5 trials" in again.stdout
    np.savez(tmp_path / "other.npz", sample=dataset.table["sample"].to_numpy(str), features=np.ones((len(dataset), 2)))
    other = ["--embeddings", f"mine={tmp_path / 'other.npz'}"]
    assert "The encoders here are not those of" in fails("report", store, "--features", *other, "--no-audit")
    report = run("report", store, "--features", *own, "--no-audit")
    assert report.returncode == 0, report.stderr
    page = page_of(store / "report.html")
    assert "What the features contain" in page.text
    frame = ldl.Benchmark.from_toml(store / "settings.toml").features("mine")
    for column in ("label", "subject"):
        (row,) = probe(frame, column).to_dict("records")
        assert f"{row['balanced_accuracy']:.3f}{row['chance']:.3f}" in page.text.replace("\n", "")
    maps = [image for image in page.images if image["alt"].startswith("Map of features")]
    assert len(maps) == 3  # by class, patient and official fold
