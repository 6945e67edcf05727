"""`leukemia-dl download | verify` as a person runs them."""

import shutil

import pytest

from command import run


def test_help_says_what_there_is():
    for name, options in {
        "verify": ["--manifest", "--partial"],
        "download": ["--to"],
    }.items():
        answer = run(name, "--help")
        assert answer.returncode == 0
        assert all(option in answer.stdout for option in options)
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
        (["verify", "nowhere", "--manifest", "nothing"], "No such file or directory"),
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
