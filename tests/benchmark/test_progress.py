"""How long and how much: from earlier trials, and how it is said."""

import dataclasses
import re

import pytest

import grids
import leukemia_dl as ldl
from leukemia_dl.benchmark.progress import Costs, duration
from leukemia_dl.benchmark.trial import Record
from leukemia_dl.models import registry


@pytest.fixture(autouse=True)
def _backbones(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    grids.register(grids.tiny, grids.raises)


@pytest.fixture(scope="module")
def dataset(synthetic_root):
    return grids.dataset(synthetic_root)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.01, "less than 1 s"), (1, "1 s"), (40.4, "40 s"),
        (99, "99 s"), (100, "2 min"), (720, "12 min"), (5_900, "98 min"),
        (11_400, "3 h 10 min"), (170_000, "47 h 13 min"), (180_000, "2 d 2 h"), (3e6, "34 d 17 h"),
    ],
)  # fmt: skip
def test_durations_are_said_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_expected_seconds_are_those_of_earlier_trials_of_the_same_kind(dataset, tmp_path):
    def trials(**settings):
        bench = ldl.Benchmark(dataset, ["tiny", "raises"], **{"recipe": grids.RECIPE, "store": tmp_path, **settings})
        return {(cell.trial.backbone, cell.trial.seed): cell.trial for cell in bench.planned.trials}

    mine = trials(seeds=[0, 1, 2])
    records = [
        Record(mine["tiny", 0], "ok", timings={"seconds": 10.0}),
        Record(mine["tiny", 1], "ok", timings={"seconds": 20.0}),
    ]
    records += [Record(mine["raises", 0], "failed", timings={"seconds": 1.0})]
    costs = Costs(records)
    assert costs.expected(mine["tiny", 2]) == 15.0
    assert costs.expected(mine["raises", 1]) is None
    longer = trials(recipe=dataclasses.replace(grids.RECIPE, epochs=9), seeds=[0])
    assert costs.expected(longer["tiny", 0]) is None
    costs.add(Record(longer["tiny", 0], "ok", timings={"seconds": 8.0}))
    assert costs.expected(longer["tiny", 0]) == 8.0


def test_the_plan_says_what_trials_cost(dataset, tmp_path):
    bench = ldl.Benchmark(dataset, ["tiny"], recipe=grids.RECIPE, store=tmp_path, baselines=["majority"], seeds=[0])
    assert bench.plan()["seconds"].isna().all()
    bench.run(executor="in-process", show_progress=False)
    more = ldl.Benchmark(dataset, ["tiny"], recipe=grids.RECIPE, store=tmp_path, baselines=["majority"], seeds=[0, 1])
    plan, timings = more.plan(), bench.timings()
    assert list(plan["status"]) == ["ok", "to do", "ok"]
    assert list(plan["seconds"]) == [timings["seconds"][0], timings["seconds"][0], timings["seconds"][1]]
    assert plan["digest"].str.fullmatch("[0-9a-f]{64}").all()
    assert [digest[:12] == trial[-12:] for digest, trial in zip(plan["digest"], plan["trial"], strict=True)] == [
        True
    ] * 3
    (tmp_path / "trials" / plan["trial"][0] / "record.json").write_text("")
    assert list(more.plan()["status"]) == ["damaged", "to do", "ok"]
    assert list((tmp_path / "trials").iterdir()), "a plan changes nothing"


def test_the_time_left_follows_from_finished_trials_and_nothing_is_timed_before(dataset, tmp_path, capsys):
    def lines(*seeds):
        made = ldl.Benchmark(dataset, ["tiny"], recipe=grids.RECIPE, store=tmp_path, baselines=[], seeds=seeds)
        made.run(executor="in-process")
        return capsys.readouterr().err.splitlines()

    first = lines(0, 1)
    assert first[0].startswith("[1/2] tiny ")
    ends = [line for line in first if "accuracy" in line and line.startswith("[")]
    assert re.search("; (about|less than) .* left$", ends[0])
    assert "left" not in ends[1]
    (expected,) = (line for line in lines(0, 1, 2) if "on this machine" in line)
    assert re.search(" left on this machine.$", expected)
