"""What the compiler says of the programs for TPUs."""

import jax
import pytest

from alexnet_jax.state import abstract_state
from experiments.benchmarks import tpu_compile
from tests import runs


def test_the_instruction_with_most_bytes_comes_first():
    program = """
%fused (p: f32[2]) -> f32[2] {
  %big = f32[4096]{0} add(%p, %p)
}

ENTRY %main (a: bf16[4,8]) -> f32[8] {
  %a = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %small = (f32[2]{0}, s32[]) custom-call(%a), metadata={op_name="jit(f)/shard_map/small"}
  %half = f32[500000]{0} broadcast(%small), metadata={op_name="jit(f)/shard_map/lrn/div"}
  ROOT %twice = f32[500000]{0} fusion(%half, %half), kind=kLoop, calls=%fused
}
"""
    found = [(row["megabytes"], row["kind"], row["of"]) for row in tpu_compile.passes(program)]
    assert found == [(6, "fusion", ""), (2, "broadcast", "lrn/div"), (0, "custom-call", "small")]
    assert tpu_compile.passes(program)[0]["array"] == "f32[500000]"


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train", "split"])
def test_a_step_compiles_for_tpus_and_exchanges_the_gradient_once(program):
    pytest.importorskip("libtpu", reason='needs pip install "jax[tpu]"')
    config = runs.tiny_config("nowhere")
    runs.all_layers(config.model)
    devices = tpu_compile.devices_of("v5e:2x2")
    if program == "split":
        config.parallel, config.model.groups = "split", 2
    found = tpu_compile.counts(tpu_compile.lowered(program, config, devices, 4).compile())
    parameters = 4 * sum(leaf.size for leaf in jax.tree.leaves(abstract_state(config).params))
    shared = parameters // (2 if program == "split" else 1)
    across = [c for c in found["collectives"] if c["kind"] == "all-reduce" and c["bytes"] > 8]
    assert sum(c["bytes"] for c in across) == shared + 3 * 4
    assert found["bytes_moved_gb"] >= 0
    assert found["passes"]
