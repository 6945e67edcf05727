"""`leukemia-dl audit | download | verify | predict | preview`: their output, files and exit status."""

import io
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from command import SIZES, fails, run, run_process
from leukemia_dl.cli import options


def test_clean_folder(tmp_path, write_image):
    for number in range(20):
        write_image(tmp_path / "data" / ("hem" if number % 2 else "all") / f"{number}.png", number, 32)
    answer = run("audit", tmp_path / "data", "--csv", tmp_path / "new" / "findings.csv")
    assert answer.returncode == 0, answer.stderr
    assert "<Dataset 'folder': 20 images, classes all, hem>, read as --dataset folder" in answer.stdout
    assert "Audit of 'folder': 20 images, 0 errors, 0 warnings, 1 note" in answer.stdout
    assert answer.stderr == ""
    findings = pd.read_csv(tmp_path / "new" / "findings.csv")  # its folder is made
    assert list(findings) == ["kind", "severity", "sample", "other", "detail"]
    assert list(findings["kind"]) == ["no_subjects"]


def test_errors_are_exit_status_1_and_written_in_full(tmp_path, write_image):
    for number in range(20):
        write_image(tmp_path / "data" / ("hem" if number % 2 else "all") / f"{number}.png", number, 32)
    for number in range(0, 10, 2):
        (tmp_path / "data" / "all" / f"{number}.png").write_text(f"text {number}")
    # A name that is not UTF-8 is written too.
    shutil.copy(tmp_path / "data" / "hem" / "1.png", os.fsencode(tmp_path / "data" / "all") + b"/\xff.png")
    answer = run("audit", tmp_path / "data", "--csv", tmp_path / "findings.csv")
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert "error: unreadable, 5" in answer.stdout
    assert "and 2 more" in answer.stdout
    findings = pd.read_csv(tmp_path / "findings.csv")
    assert (findings["kind"] == "unreadable").sum() == 5
    assert list(findings["severity"][findings["kind"] == "identical_files"]) == ["error"]


def test_real_sample_by_name(c_nmc_sample):
    answer = run("audit", c_nmc_sample, "--dataset", "c_nmc_2019")
    assert answer.returncode == 1
    assert "error: same_cell, 3" in answer.stdout


def test_a_class_is_left_out(tmp_path, write_image):
    """20.32: --drop-class NAME."""
    for number in range(30):
        write_image(tmp_path / ("hem", "all", "odd")[number % 3] / f"{number}.png", number, 32)
    answer = run("audit", tmp_path, "--drop-class", "odd")
    assert answer.returncode == 0, answer.stderr
    assert "20 images, classes all, hem" in answer.stdout


def test_options_of_the_data_set(tmp_path, write_image):
    for number in range(20):
        write_image(tmp_path / ("hem" if number % 2 else "all") / f"{number}.png", number, 32)
    answer = run("audit", tmp_path, "--dataset-option", "class_names=hem,all")
    assert answer.returncode == 0
    assert "classes hem, all" in answer.stdout
    answer = run("audit", tmp_path, "--dataset-option", "colour=red")
    assert answer.returncode == 1
    assert "no option 'colour'" in answer.stderr


def test_mistakes_are_told_with_the_way_out(tmp_path, write_image):
    write_image(tmp_path / "loose.png")
    answer = run("audit", tmp_path)
    assert answer.returncode == 1
    assert answer.stderr.count("Error: ") == 1
    assert "has 1 images directly in it" in answer.stderr
    answer = run("audit", tmp_path, "--dataset", "c_nmc_2019")
    assert answer.returncode == 1
    assert "does not look like C-NMC" in answer.stderr
    for arguments in ([], [tmp_path, "--colour"]):
        answer = run("audit", *arguments)
        assert answer.returncode == 2, arguments
        assert "Usage" in answer.stderr


def test_help_says_what_there_is():
    for name, named in {
        "verify": ["--manifest", "--partial"],
        "download": ["--to"],
    }.items():
        answer = run(name, "--help")
        assert answer.returncode == 0
        assert all(option in answer.stdout for option in named)
        assert name in run("--help").stdout


def test_verify_the_real_sample(c_nmc_sample, c_nmc_manifest, tmp_path):
    lines = [line.split("\t") for line in (c_nmc_manifest / "sha256.tsv").read_text().splitlines()[1:]]
    manifest = tmp_path / "sha256.txt"
    manifest.write_text("".join(f"{content}  {name}\n" for content, _, name in lines))
    answer = run("verify", c_nmc_sample, "--manifest", manifest, "--partial")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("OK: 61 ok, 15,054 missing in ")
    answer = run("verify", c_nmc_sample, "--manifest", manifest)
    assert answer.returncode == 1
    assert answer.stdout.startswith("NOT OK: 61 ok, 15,054 missing in ")
    copy = tmp_path / "C-NMC_Leukemia"
    shutil.copytree(c_nmc_sample, copy, copy_function=shutil.copyfile)
    path = copy / "testing_data" / "C-NMC_test_final_phase_data" / "1.bmp"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    answer = run("verify", copy, "--manifest", manifest, "--partial")
    assert answer.returncode == 1
    assert "changed    C-NMC_Leukemia/testing_data/C-NMC_test_final_phase_data/1.bmp\n" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "nowhere", "--manifest", "nothing"], "There is no folder"),
        (["download", "c_nmc_2018", "--to", "x"], "There is no data set 'c_nmc_2018'. Did you mean 'c_nmc_2019'?"),
        (["download", "synthetic", "--to", "x"], "There is no data set to download 'synthetic'. Known: c_nmc_2019."),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = run(*arguments)
    assert answer.returncode == 1
    assert answer.stderr.startswith("Error: ")
    assert message in answer.stderr
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["verify", "."], ["download", "c_nmc_2019"], ["download", "--to", "x"]])
def test_what_is_needed_is_asked_for(arguments):
    answer = run(*arguments)
    assert answer.returncode == 2
    assert "Missing" in answer.stderr


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
