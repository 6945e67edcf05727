"""Sources are found by name, with their options checked."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from leukemia_dl import plugins
from leukemia_dl.datasets import Dataset, DatasetSource, cache_dir, dataset_table, get_source, list_datasets
from leukemia_dl.errors import SettingsError, UnknownNameError

BUILTIN = ["all_aria", "c_nmc_2019", "csv", "folder", "segmentation_wbc", "synthetic"]


def test_built_in_names() -> None:
    assert set(BUILTIN) <= set(list_datasets())
    assert list_datasets() == sorted(list_datasets())
    for name in BUILTIN:
        source = get_source(name)
        assert isinstance(source, DatasetSource)
        assert source.name == source.info.name == name
        assert source.info.licence
        assert source.info.citation


def test_table_has_no_gaps() -> None:
    table = dataset_table().set_index("name")
    assert not table.isna().any(axis=None)
    assert table.loc["c_nmc_2019", ["classes", "images"]].tolist() == ["hem, all", "15114"]
    assert table.loc["c_nmc_2019", "licence"].startswith("CC BY 3.0")
    assert "10.7937/tcia.2019.dc64i46r" in table.loc["c_nmc_2019", "citation"]
    assert "seed" in table.loc["synthetic", "options"]
    assert table.loc[["csv", "folder", "synthetic"], "images"].tolist() == ["yours", "yours", "as many as asked for"]


def test_unknown_name_and_option() -> None:
    with pytest.raises(UnknownNameError, match=r"There is no data set 'c_nmc'. Did you mean 'c_nmc_2019'"):
        Dataset.load("c_nmc", root="x")
    with pytest.raises(SettingsError, match=r"'synthetic' has no option 'subject'. Known: subjects \(number of"):
        Dataset.load("synthetic", subject=4)
    with pytest.raises(SettingsError, match=r"'c_nmc_2019' has no option 'canvas'. Known: drop_classes"):
        Dataset.load("c_nmc_2019", root="x", canvas=4)


def test_a_plugin_that_yields_something_else_is_named_and_hides_nobody() -> None:
    class Wrong:
        name = "wrong"

    module = SimpleNamespace(leukemia_dl_datasets=plugins.hookimpl(lambda: [Wrong()]))
    plugins.forget()
    plugins._register(plugins._plugin_manager(), module, plugins.Origin("their-package", "1.2", "theirs"))
    try:
        assert set(BUILTIN) <= set(list_datasets())
        assert "wrong" not in list_datasets()
        (row,) = plugins.plugin_problems().to_dict("records")
    finally:
        plugins.forget()
    assert (row["plugin"], row["entry_point"]) == ("their-package", "theirs")
    assert "must yield leukemia_dl.DatasetSource records" in row["problem"]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "c"))
    assert cache_dir() == tmp_path / "c"
    monkeypatch.delenv("LEUKEMIA_DL_CACHE")
    assert cache_dir().name == "leukemia_dl"
    assert cache_dir().is_absolute()


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, leukemia_dl.datasets, leukemia_dl.preprocess as p, leukemia_dl.datasets as d; d.list_datasets(); "
    )
    code += "print([m for m in ('keras', 'tensorflow', 'jax', 'sklearn', 'matplotlib', 'scipy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
