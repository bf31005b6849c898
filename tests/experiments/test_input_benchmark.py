"""The benchmarks of the input run, and report what they say; no test claims their times."""

import argparse
import importlib
import json
import subprocess
import sys

import pytest

from tests import prepared, runs

BENCHMARKS = runs.ROOT / "experiments/benchmarks"


@pytest.fixture
def module(monkeypatch):
    """Return a function that imports a module of the benchmarks, as their scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_scaling_reports_the_rate_over_that_of_a_single_thread(module, tmp_path):
    scaling = module("input_scaling")
    options = argparse.Namespace(
        pictures=prepared.make_folder(tmp_path / "photos", train=2, val=1),
        scratch=tmp_path,
        kinds=["jpeg", "raw"],
        cores=[1, 4],
        rounds=3,
        torch_python="python",
    )

    def one(name, scratch):
        _, kind, peer, cores = name.split("/")
        rate = {"1": 100.0, "4": 380.0}[cores] if peer == "workers" else 100.0
        return {"images_per_second": rate, "images_per_cpu_second": 50.0}

    made = scaling.report(options, one)
    assert made["bytes_per_image"]["raw"] == 3 * 256**2
    assert len(list((tmp_path / "scaling/files").iterdir())) == 4
    assert (tmp_path / "scaling/raw.bin").stat().st_size == 4 * 3 * 256**2
    for of_kind in made["results"].values():
        assert of_kind["workers"]["4"]["efficiency"] == 0.95
        assert of_kind["threads"]["4"]["efficiency"] == 0.25
        assert of_kind["torch"]["1"]["efficiency_cpu"] == 1
    scaling.plot(made, str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_copies_are_timed_for_every_batch(module):
    copies = module("input_copy").measured([2, 4])["copies"]
    assert set(copies) == {"2", "4"}
    for found in copies.values():
        assert {"numpy", "shared", "computing", "both"} <= set(found)
        assert min(found.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["threads", "workers", "threads_one_heap"])
def test_a_way_of_decoding_is_measured_in_a_process_of_its_own(tmp_path, peer):
    scratch = tmp_path / "scaling"
    prepared.make_folder(scratch / "native", train=8)
    said = subprocess.check_output(
        [
            *(sys.executable, "experiments/benchmarks/input.py"),
            *(f"--only=scaling/jpeg/{peer}/1", f"--scratch={scratch}"),
        ],
        cwd=runs.ROOT,
        env=runs.cpu_devices() | {"PYTHONPATH": str(runs.ROOT)},
        text=True,
    )
    assert min(json.loads(said.splitlines()[-1]).values()) > 0
