"""What the benchmark of the fused block calculates and refuses; no test claims its times."""

import sys

import pytest

from experiments.benchmarks import fused


def test_bytes_that_must_move():
    """Of one image's 7x7x8 maps: 784 bytes, and nine outputs of two bytes and a word each."""
    outputs = 9 * 8 * (2 + 4)
    assert fused.least_bytes(7, 8, 1, lrn=True) == {
        "forward": 784 + outputs,
        "both": 3 * 784 + 2 * outputs,
    }
    assert fused.least_bytes(7, 8, 2, lrn=False)["both"] == 2 * (2 * 784 + 2 * outputs)


@pytest.mark.parametrize("flags", [[], ["--check"]])
def test_without_a_gpu_or_warp_it_says_so_in_one_line(monkeypatch, capsys, flags):
    monkeypatch.setattr(sys, "argv", ["fused.py", *flags])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # which --check sets
    monkeypatch.setitem(sys.modules, "warp", None)
    with pytest.raises(SystemExit) as ended:
        fused.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "needs NVIDIA Warp" in said and said.count("\n") == 1
