"""The command: its output, its files and its exit status; in a process of its own where that is what is tested."""

import io
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from command import FAST, SIZES, fails, run, run_process
from leukemia_dl.cli import options


def test_help_answers_at_once():
    started = time.monotonic()
    answer = run_process("--help")
    assert time.monotonic() - started < 5  # well under a second on a quiet machine; see benchmarks/
    assert answer.returncode == 0
    for name in ("benchmark", "predict", "backbones", "datasets", "doctor"):
        assert name in answer.stdout
    assert run("--version").stdout.startswith("leukemia-dl 0.")


def test_benchmark_tells_and_leaves_everything(finished):
    store, answer = finished
    for line in ("[3/4] cell_colour fold 2: accuracy ", "[4/4] cnn fold 2 seed 0 ...", "    epoch 1/1  loss "):
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


def test_predict_on_unlabelled_files_of_another_size(finished, synthetic_root, tmp_path):
    store, _ = finished
    folder = synthetic_root / "C-NMC_Leukemia" / "testing_data" / "C-NMC_test_final_phase_data"
    output = tmp_path / "predictions.csv"
    answer = run("predict", store, folder, "--output", output)
    assert answer.returncode == 0, answer.stderr
    frame = pd.read_csv(output)
    assert list(frame) == ["path", "predicted", "probability_hem", "probability_all", "error"]
    assert len(frame) == 2
    assert ((frame["probability_hem"] + frame["probability_all"]).round(6) == 1).all()
    piped = run("predict", store, *sorted(folder.iterdir()))
    assert piped.stdout.splitlines()[0] == "path,predicted,probability_hem,probability_all,error"
    assert len(piped.stdout.splitlines()) == 3


def test_the_lists_and_the_doctor(tmp_path):
    assert "inception_v3" in run("backbones").stdout
    assert "arXiv:1512.03385" in run("backbones", "--format", "csv").stdout
    listed = run("datasets").stdout
    assert "c_nmc_2019" in listed
    assert "synthetic" in listed
    doctor = run("doctor", cwd=tmp_path)
    assert doctor.returncode == 0
    for word in ("Backend       tensorflow", "Devices       cpu:0", "Precision     float32", "writable", "Ready."):
        assert word in doctor.stdout
    sick = run("doctor", LEUKEMIA_DL_CACHE="/proc/none", cwd=tmp_path)
    assert sick.returncode == 1
    assert "set LEUKEMIA_DL_CACHE" in sick.stdout
    assert "Not ready" in sick.stdout
    missing = run_process("doctor", KERAS_BACKEND="jax", cwd=tmp_path)
    assert "jax is not installed" in missing.stdout or "Ready." in missing.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--backbones", "resnet5"], "no backbone 'resnet5'. Did you mean 'resnet50'?"),
        (["--recipe", "quik"], "no recipe 'quik'. Did you mean 'quick'?"),
        (["-s", "epoch=3"], "no recipe setting 'epoch'. Did you mean 'epochs'?"),
        (["-s", "epochs"], "--set takes KEY=VALUE. Received: 'epochs'"),
        (["--dataset", "cnmc"], "no data set 'cnmc'"),
        (["--dataset", "c_nmc_2019"], "--root PATH"),
        (["-o", "subject=3"], "no option 'subject'"),
        (["-o", "subjects=3"], "subjects"),
        (["--image-size", "64"], "inception_v3 needs images of at least 75 x 75 pixels"),
        (["-s", "weights=5"], "weights must be None, a name or a path"),
        (["-s", "weights=vgg16=imagenet"], "weights does not name resnet50"),
        (["-s", "weights=vgg16=own,cnn=random", "--backbones", "vgg16"], "Allowed: None, 'imagenet', or the path"),
        (["-s", "name="], "name must be a str, not empty"),
        (["--recipe", "mine.toml"], "The recipe mine.toml cannot be read: No such file"),
        (["--recipe", "linear_probe"], "Leave cnn out, pass an .h5 file as weights"),
        (["--device", "tpu"], "device must be 'auto', 'cpu', 'gpu' or 'gpu:N'"),
        (["-s", "callbacks=nothing"], 'its name as "module:function"'),
        (["--recipe", "linear_probe", "-s", "select_epoch=maybe"], "select_epoch must be True or False"),
        (["-o", "root=x"], "--dataset-option root=... is given as --root"),
        (["-o", "workers=-1"], "workers must be a whole number"),
        (["-o", "images=1000000000"], " to 100,000"),
        (["--dataset", "folder", "--root", "x" * 300], "File name too long"),
        (["--seeds", "a"], "--seeds takes whole numbers separated by commas. Received: 'a'"),
        (["--folds", "x"], "--folds takes whole numbers"),
        (["-s", "weights=nothing.h5", "--backbones", "cnn", *SIZES], "there is no such file"),
        (
            ["--executor", "fast"],
            "executor",
        ),
        (["--shard", "3/2"], "shard must be 'i/n' with i from 1 to n"),
        (["--workers", "0"], "workers must be a whole number of at least 1"),
        (["--workers", "2", "--executor", "in-process"], "workers belongs to --executor processes"),
        (["--workers", "2", "--executor", "ray"], "workers belongs to --executor processes"),
        (["--protocol", "kfold,kfold", *SIZES, *FAST], "protocol must not repeat a name"),
        (["--protocol", ",", *SIZES, *FAST], "protocol must name at least one"),
        (["--time-limit", "0", *SIZES, *FAST], "time_limit must be a number in (0, inf)"),
        (["mine.toml"], "mine.toml cannot be read: No such file or directory"),
        (["mine.toml", "--seeds", "0"], "--seeds is a setting in the file mine.toml: change it there"),
        (["mine.toml", "-o", "subjects=3", "--plan"], "--dataset-option is a setting in the file mine.toml"),
        (["runs/first"], "SETTINGS is a .toml file, such as the settings.toml of a store. Received: 'runs/first'"),
    ],
)
def test_a_wrong_setting_is_one_plain_line(arguments, says, tmp_path):
    assert says in fails("benchmark", *arguments, cwd=tmp_path)
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
        assert "npack" in error or "archive" in error


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


def test_predict_on_nothing_good(finished, tmp_path):
    store, _ = finished
    assert "no model at" in fails("predict", tmp_path / "none.keras", tmp_path / "bad.bmp")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in fails("predict", store, tmp_path / "empty")


def test_predict_gives_every_file_a_row_and_says_by_its_exit_status_that_some_failed(
    finished, synthetic_root, tmp_path
):
    """20.23: one unreadable image, a file of a system or a folder called old.png stop nothing."""
    good = sorted(synthetic_root.rglob("*.bmp"))[:2]
    for path, name in zip(good, ("cells/1.bmp", "cells/old.png/2.bmp"), strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / name)
    (tmp_path / "cells" / "._1.bmp").write_bytes(b"x")
    whole = run("predict", finished[0], "cells", cwd=tmp_path)
    assert (whole.returncode, whole.stderr) == (0, "")
    (tmp_path / "cells" / "bad.bmp").write_bytes(b"BM")
    answer = run("predict", finished[0], "cells", "gone.bmp", cwd=tmp_path)
    frame = pd.read_csv(io.StringIO(answer.stdout)).set_index("path")
    names = ["cells/1.bmp", "cells/bad.bmp", "cells/old.png/2.bmp", "gone.bmp"]
    assert list(frame.index) == [str(tmp_path / name) for name in names]  # absolute, as in Dataset.table
    assert list(frame["error"].isna()) == [True, False, True, False]
    assert list(frame["predicted"].isna()) == [False, True, False, True]
    assert answer.returncode == 1
    assert "2 of 4 images cannot be read" in answer.stderr


def test_redirected_output_takes_every_character(finished, synthetic_root, tmp_path):
    """20.31: CSV is UTF-8 whatever the encoding of the stream; what else is printed never raises."""
    folder = tmp_path / "细胞-\u202e"
    folder.mkdir()
    cell = shutil.copy(next(synthetic_root.rglob("*.bmp")), folder / "ячейка.bmp")
    answer = run("predict", finished[0], cell, folder / "нет.bmp", encoding="cp1252")
    assert answer.returncode == 1
    frame = pd.read_csv(io.BytesIO(answer.bytes), encoding="utf-8")
    assert list(frame["path"]) == [str(cell), str(folder / "нет.bmp")]
    assert "\\u043d\\u0435\\u0442.bmp" in answer.stderr
    audited = run("audit", folder, encoding="cp1252")
    assert audited.returncode == 1
    assert audited.stderr.count("Error: ") == 1
    assert "Traceback" not in audited.stderr
    assert "│" not in run_process("datasets", PYTHONIOENCODING="cp1252").stdout


def test_csv_holds_names_as_they_are_or_quoted_for_spreadsheets(finished, synthetic_root, tmp_path):
    """20.40: CSV is data for programs; --safe-csv quotes formulas and spells out control characters."""
    names = ["=cmd|x!A1.bmp", "@sum.bmp", "-1.bmp", "es\x1b[31mc.bmp", "li\nne.bmp", "plain.bmp"]
    for name in names:
        shutil.copy(next(synthetic_root.rglob("*.bmp")), tmp_path / name)
    plain = run("predict", finished[0], "--", *names, cwd=tmp_path)
    assert list(pd.read_csv(io.StringIO(plain.stdout))["path"]) == [str(tmp_path / name) for name in names]
    assert run("predict", finished[0], "--safe-csv", "--output", "p.csv", "--", *names, cwd=tmp_path).returncode == 0
    spelled = ["=cmd|x!A1.bmp", "@sum.bmp", "-1.bmp", "es\\x1b[31mc.bmp", "li\\nne.bmp", "plain.bmp"]
    assert list(pd.read_csv(tmp_path / "p.csv")["path"]) == [str(tmp_path / name) for name in spelled]
    options.write_csv(pd.DataFrame({"sample": names}), tmp_path / "s.csv", safe=True)
    quoted = ["'=cmd|x!A1.bmp", "'@sum.bmp", "'-1.bmp", *spelled[3:]]
    assert list(pd.read_csv(tmp_path / "s.csv")["sample"]) == quoted
    missing = run("predict", finished[0], "es\x1b[31mc.png", "--output", "p.csv", cwd=tmp_path)
    assert "\x1b" not in missing.stderr + missing.stdout
    assert "--output no/p.csv cannot be written: there is no folder" in fails(
        "predict", finished[0], "plain.bmp", "--output", "no/p.csv", cwd=tmp_path
    )


def test_what_predict_writes_is_not_evaluated_without_the_truth(finished, synthetic_root, tmp_path):
    """20.1: the predicted class was taken for the true one, and accuracy was 1.000."""
    run("predict", finished[0], synthetic_root / "C-NMC_Leukemia" / "training_data", "--output", tmp_path / "p.csv")
    error = fails("evaluate", tmp_path / "p.csv")
    assert "no column label, the true class" in error
    assert "predictions.merge(truth[['path', 'label']], on='path')" in error
    frame = pd.read_csv(tmp_path / "p.csv")
    truth = pd.DataFrame({"path": frame["path"], "label": [Path(path).parent.name for path in frame["path"]]})
    joined = frame.merge(truth[["path", "label"]], on="path")
    joined.to_csv(tmp_path / "joined.csv", index=False)
    run("evaluate", tmp_path / "joined.csv", "--csv", tmp_path / "metrics.csv")
    metrics = pd.read_csv(tmp_path / "metrics.csv").set_index("metric")["value"]
    assert metrics["accuracy"] == pytest.approx((joined["predicted"] == joined["label"]).mean())
    assert metrics["accuracy"] < 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(synthetic_root, tmp_path):
    import signal

    arguments = ["benchmark", "--root", str(synthetic_root), *SIZES, "--store", str(tmp_path / "s")]
    arguments += ["--backbones", "cnn", "--image-size", "32", "-s", "epochs=2000"]
    with subprocess.Popen(
        [sys.executable, "-m", "leukemia_dl", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A shell's background job ignores Ctrl-C, and so would this process, for ever.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        for line in process.stderr:
            if "epoch 2/" in line:
                break
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Stopped. Finished trials are kept" in rest
    assert rest.count("from there") == 2  # at once, and when the epoch has ended
    assert "Traceback" not in rest
    assert not list((tmp_path / "s" / "trials").glob("cnn-*"))
    assert "3 records, 3 ok" in run("runs", "list", tmp_path / "s").stdout.splitlines()[-1]
    assert [path.name[:4] for path in (tmp_path / "s" / "unfinished").iterdir()] == ["cnn-"]


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m leukemia_dl backbones --format csv | head -1"
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert answer.stdout.startswith("backbone,")
    assert answer.stderr == ""


def test_module_and_script_are_the_same():
    script = Path(sys.executable).with_name("leukemia-dl")
    assert subprocess.run([script, "--version"], capture_output=True, text=True).stdout == run("--version").stdout


def test_preview_draws_a_contact_sheet(synthetic_root, tmp_path):
    output = tmp_path / "sheet.png"
    settings = ["-s", "rotation=20", "-s", "stain=0.2", "--stain", "macenko", "--images", "3", "--image-size", "48"]
    answer = run("preview", "--root", synthetic_root, *SIZES, *settings, "--output", output)
    assert answer.returncode == 0, answer.stderr
    assert "Images: 3" in answer.stdout
    with Image.open(output) as picture:
        assert picture.width > 2 * picture.height  # three rows of ten
    for wrong, allowed in (
        (["--stain", "machenko"], "'reinhard', 'macenko'"),
        (["--images", "0"], "greater than or equal to 1"),
    ):
        answer = run("preview", *wrong)
        assert answer.returncode == 2
        assert allowed in answer.stderr
    assert "--output must end in .png" in fails("preview", "--output", "sheet.jpg")
    assert "cannot be written" in fails("preview", "--root", synthetic_root, *SIZES, "--output", "/proc/no.png")


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
    assert [row[:5] for row in rows] == [
        ["cnn", "official_clean", "2", "0", "ok"],
        ["cnn", "official_clean", "2", "1", "to do"],
        *([name, "official_clean", "2", "", "ok"] for name in ("majority", "cell_size", "cell_colour")),
    ]
    seconds = pd.read_csv(store / "timings.csv").set_index("backbone").loc["cnn", "seconds"]
    assert rows[0][5] == rows[1][5] == f"{seconds:.1f}"  # what is known of one seed is expected of another
    assert shown.splitlines()[-1].startswith("To do: 1 of 5 trials, about ")
    assert "To do: 3 of 3 trials, about " in run(*arguments, "--seeds", "0,1", "--rerun", "--shard", "1/2").stdout
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    next(store.rglob("model.keras")).unlink()
    shown = run(*arguments).stdout
    assert "no model" in shown
    assert "To do: 1 of 4 trials" in shown
    arguments[-2] = tmp_path / "nothing"
    assert "To do: 4 of 4 trials; the time of all trials is not known yet." in run(*arguments, "--no-models").stdout
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


def test_shards_of_several_protocols_make_one_table_and_one_report(synthetic_root, tmp_path):
    fast = [option for option in FAST if option != "--no-report"]
    arguments = ["benchmark", "--root", synthetic_root, *SIZES, *fast, "--store", tmp_path / "s", "--no-models"]
    arguments += ["--protocol", "official_clean, holdout", "--executor", "in-process"]
    planned = run(*arguments, "--shard", "1/2", "--plan")
    assert planned.stdout.count(" cnn ") == 1, "what a part plans is what it runs"
    assert "To do: 4 of 4 trials" in planned.stdout
    half = run(*arguments, "--shard", "1/2")
    assert half.returncode == 0, half.stderr
    assert "[4/4] cnn official_clean fold 2 seed 0: accuracy " in half.stderr
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
    assert not list((tmp_path / "s").rglob("model.keras"))


def test_a_trial_that_takes_too_long_has_failed(synthetic_root, tmp_path):
    arguments = ["benchmark", "--root", synthetic_root, *SIZES, *FAST, "--store", tmp_path / "s", "--baselines", ""]
    arguments += ["--executor", "processes", "--workers", "1", "--time-limit", "0.2"]
    says = "failed: TimeLimitError: It took longer than the limit of 0.2 s and was killed."
    answer = run(*arguments)  # a table in which nothing has an accuracy
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert says in answer.stdout
    assert "failed" in run("runs", "show", tmp_path / "s", "cnn").stdout
