"""`leukemia-dl backbones | datasets | recipes | doctor`."""

from command import run, run_process


def test_the_lists_and_the_doctor(tmp_path):
    assert "inception_v3" in run("backbones").stdout
    assert "arXiv:1512.03385" in run("backbones", "--format", "csv").stdout
    listed = run("datasets").stdout
    assert "c_nmc_2019" in listed
    assert "synthetic" in listed
    doctor = run("doctor", cwd=tmp_path)
    assert doctor.returncode == 0
    assert "Cache limit   pixels and features: " in doctor.stdout  # 20.42
    assert " GB of at most 20 GB (LEUKEMIA_DL_CACHE_LIMIT)" in doctor.stdout
    for word in ("Backend       tensorflow", "Devices       cpu:0", "Precision     float32", "writable", "Ready."):
        assert word in doctor.stdout
    sick = run("doctor", LEUKEMIA_DL_CACHE="/proc/none", cwd=tmp_path)
    assert sick.returncode == 1
    assert "set LEUKEMIA_DL_CACHE" in sick.stdout
    assert "Not ready" in sick.stdout
    missing = run_process("doctor", KERAS_BACKEND="jax", cwd=tmp_path)
    assert "jax is not installed" in missing.stdout or "Ready." in missing.stdout
