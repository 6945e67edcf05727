"""`leukemia-dl report`: the page of a store, from the store alone and with the data set."""

import shutil

import stores
from command import fails, run


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
    answer = run("report", copy)
    assert answer.returncode == 0, answer.stderr
    assert (copy / "report.html").read_bytes() == page


def test_a_data_set_that_has_moved_is_found_by_root(finished, synthetic_root, tmp_path):
    store, _ = finished
    copy = tmp_path / "sent"
    shutil.copytree(store, copy)
    settings = stores.run_folder(copy) / "settings.toml"
    settings.write_text(settings.read_text().replace(f'root = "{synthetic_root}', 'root = "/nowhere'))
    answer = run("report", copy, "--output", tmp_path / "without.html", "--no-cards")
    assert answer.returncode == 0, answer.stderr
    assert "This page has no images" in (tmp_path / "without.html").read_text()
    answer = run("report", copy, "--root", synthetic_root, "--output", tmp_path / "with.html", "--no-cards")
    assert "This page has no images" not in (tmp_path / "with.html").read_text()
    assert "Cards" not in answer.stdout


def test_what_is_wrong_is_said(tmp_path):
    assert "is not the store of a benchmark" in fails("report", tmp_path)
    stores.made_up(tmp_path / "s", stores.cells())
    assert "there is no folder" in fails("report", tmp_path / "s", "--output", tmp_path / "no" / "x.html")
