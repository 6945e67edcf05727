"""`leukemia-dl audit`: its output, files and exit status."""

import os
import shutil

import pandas as pd

import command


def run(*arguments):
    return command.run("audit", *arguments)


def test_clean_folder(tmp_path, write_image):
    for number in range(20):
        write_image(tmp_path / "data" / ("hem" if number % 2 else "all") / f"{number}.png", number, 32)
    answer = run(tmp_path / "data", "--csv", tmp_path / "findings.csv")
    assert answer.returncode == 0, answer.stderr
    assert "<Dataset 'folder': 20 images, classes all, hem>, read as --dataset folder" in answer.stdout
    assert "Audit of 'folder': 20 images, 0 errors, 0 warnings, 1 note" in answer.stdout
    assert answer.stderr == ""
    findings = pd.read_csv(tmp_path / "findings.csv")
    assert list(findings) == ["kind", "severity", "sample", "other", "detail"]
    assert list(findings["kind"]) == ["no_subjects"]


def test_errors_are_exit_status_1_and_written_in_full(tmp_path, write_image):
    for number in range(20):
        write_image(tmp_path / "data" / ("hem" if number % 2 else "all") / f"{number}.png", number, 32)
    for number in range(0, 10, 2):
        (tmp_path / "data" / "all" / f"{number}.png").write_text(f"text {number}")
    # A name that is not UTF-8 is written too.
    shutil.copy(tmp_path / "data" / "hem" / "1.png", os.fsencode(tmp_path / "data" / "all") + b"/\xff.png")
    answer = run(tmp_path / "data", "--csv", tmp_path / "findings.csv")
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert "error: unreadable, 5" in answer.stdout
    assert "and 2 more" in answer.stdout
    findings = pd.read_csv(tmp_path / "findings.csv")
    assert (findings["kind"] == "unreadable").sum() == 5
    assert list(findings["severity"][findings["kind"] == "identical_files"]) == ["error"]


def test_real_sample_by_name(c_nmc_sample):
    answer = run(c_nmc_sample, "--dataset", "c_nmc_2019")
    assert answer.returncode == 1
    assert "error: same_cell, 3" in answer.stdout


def test_a_class_is_left_out(tmp_path, write_image):
    """20.32: --drop-class NAME."""
    for number in range(30):
        write_image(tmp_path / ("hem", "all", "odd")[number % 3] / f"{number}.png", number, 32)
    answer = run(tmp_path, "--drop-class", "odd")
    assert answer.returncode == 0, answer.stderr
    assert "20 images, classes all, hem" in answer.stdout


def test_options_of_the_data_set(tmp_path, write_image):
    for number in range(20):
        write_image(tmp_path / ("hem" if number % 2 else "all") / f"{number}.png", number, 32)
    answer = run(tmp_path, "--dataset-option", "class_names=hem,all")
    assert answer.returncode == 0
    assert "classes hem, all" in answer.stdout
    answer = run(tmp_path, "--dataset-option", "colour=red")
    assert answer.returncode == 1
    assert "no option 'colour'" in answer.stderr


def test_mistakes_are_told_with_the_way_out(tmp_path, write_image):
    write_image(tmp_path / "loose.png")
    answer = run(tmp_path)
    assert answer.returncode == 1
    assert answer.stderr.count("Error: ") == 1
    assert "Name another kind with --dataset" in answer.stderr
    answer = run(tmp_path, "--dataset", "c_nmc_2019")
    assert answer.returncode == 1
    assert "does not look like C-NMC" in answer.stderr
    assert "Name another kind" not in answer.stderr
    answer = run(tmp_path, "--csv", tmp_path / "no" / "findings.csv")
    assert answer.returncode == 1
    assert "there is no folder" in answer.stderr
    for arguments in ([], [tmp_path, "--colour"]):
        answer = run(*arguments)
        assert answer.returncode == 2, arguments
        assert "Usage" in answer.stderr
