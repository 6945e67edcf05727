"""What travels to a worker process."""

import pickle

import grids
import leukemia_dl as ldl
from leukemia_dl.benchmark.runner import Task
from leukemia_dl.benchmark.worker import packed_task


def test_a_backbone_of_a_script_is_one_for_all_its_tasks(synthetic_root, tmp_path):
    """Its function is sent by value; by equal bytes the worker knows it again, and builds its net once."""
    data = grids.dataset(synthetic_root)
    made = ldl.Benchmark(data, ["cnn"], recipe=grids.RECIPE, seeds=[0, 1], baselines=[], store=tmp_path)
    spec = ldl.BackboneSpec(name="here", build=lambda *given: given, scaling="unit", native_size=32, min_size=8)
    tasks = [packed_task(Task(cell.trial, cell.split, spec, 32)) for cell in made._grid]
    assert len({pickle.loads(task)[0] for task in tasks}) == 1 < len({*tasks})
