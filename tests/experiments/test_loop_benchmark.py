"""The benchmark of the training loop runs; no test claims its times."""

from experiments.benchmarks import loop
from tests import runs


def test_every_variant_is_timed_in_every_round(tmp_path, data_dir):
    arguments = [*runs.TINY, f"--config.dataset.data_dir={data_dir}"]
    times = loop.measured(arguments, 2, 3, tmp_path)
    assert set(times) == {"step", "fed", "written", "batches"}
    assert all(len(each) == 3 and min(each) > 0 for each in times.values())
    # Two steps in each of four rounds, the first of which warms up; every one is logged.
    assert [line["step"] for line in runs.metrics(tmp_path)] == list(range(1, 8))
