"""The fused block: which layers it computes, what it asks for, and its kernels on a CPU.

The kernels need NVIDIA Warp (`pip install warp-lang`), and their tests are skipped without it. On a
GPU `experiments/benchmarks/fused.py` compares them with the same formulas.
"""

import functools
import re
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import InputError, data, fused, parallel
from alexnet_jax import model as model_lib
from alexnet_jax.augment import statistics_of
from alexnet_jax.model import AlexNet
from alexnet_jax.ops import local_response_norm, max_pool
from alexnet_jax.state import initial_state
from alexnet_jax.step import train_step
from alexnet_jax.train import train_and_evaluate
from tests.agreement import agree, one_value
from tests.reference import ops as reference

K, ALPHA = 2.0, 0.05  # sums of squares outweigh k
LRN = (K, ALPHA)
NET = {
    "num_classes": 4,
    "features": (16, 16, 8, 8, 16),
    "hidden": (8, 8),
    "dropout": 0.0,
    "init_std": 0.1,
}
DEFAULT = AlexNet()


def by_parts(x, bias, *, lrn, columns):
    """Compute what fused.relu_pool does, as the model does without it."""
    x = jax.nn.relu(x + bias.astype(x.dtype))
    if lrn:
        k, alpha = lrn
        apart = x.reshape(*x.shape[:-1], columns, -1)
        x = local_response_norm(apart, k=k, alpha=alpha).reshape(x.shape)
    return max_pool(x)


class TestWhichLayers:
    IMAGES = jnp.asarray(np.random.default_rng(0).normal(0, 50, (2, 67, 67, 3)), jnp.float32)

    def both(self, **attributes):
        """Return a net without relu_pool, one that notes its calls in a list, and the list."""
        calls = []

        def noted(x, bias, **arguments):
            calls.append(tuple(arguments.values()))
            return by_parts(x, bias, **arguments)

        plain = AlexNet(**NET | attributes)
        return plain, plain.clone(relu_pool=noted), calls

    def calls(self, **attributes):
        """Return the arguments of each call of relu_pool."""
        plain, fuses, calls = self.both(**attributes)
        variables = jax.eval_shape(plain.init, jax.random.key(0), self.IMAGES)
        assert jax.eval_shape(fuses.init, jax.random.key(0), self.IMAGES) == variables
        assert not calls
        jax.eval_shape(fuses.apply, variables, self.IMAGES)
        return calls

    def test_the_network_is_the_same(self):
        """Initial parameters, logits and gradients are equal to the bit."""
        plain, fuses, calls = self.both(groups=2)

        @functools.partial(jax.jit, static_argnums=0)
        def results(model):
            variables = model.init(jax.random.key(0), self.IMAGES)

            def loss(variables):
                logits = model.apply(variables, self.IMAGES)
                return (logits**2).sum(), logits

            return variables, jax.grad(loss, has_aux=True)(variables)

        jax.tree.map(np.testing.assert_array_equal, results(fuses), results(plain))
        assert len(calls) == 3

    def test_the_paper_s_three(self):
        k, alpha = DEFAULT.lrn["k"], DEFAULT.lrn["alpha"]
        assert self.calls() == [((k, alpha), 1), ((k, alpha), 1), (None, 1)]

    def test_two_columns_on_a_device_are_normalized_apart(self):
        assert [columns for _, columns in self.calls(groups=2)] == [2, 2, 2]

    @pytest.mark.parametrize(
        ("attributes", "number"),
        [
            ({"lrn": dict(DEFAULT.lrn) | {"n": 3}}, 1),
            ({"lrn": dict(DEFAULT.lrn) | {"beta": 0.5}}, 1),
            ({"pool": {"window": 2, "stride": 2}}, 0),
            ({"ceil_mode": True}, 0),
            ({"features": (16, 12, 8, 8, 16)}, 2),
            ({"stages": (("relu", "max_pool", "lrn"), *DEFAULT.stages[1:])}, 2),
            ({"stages": (("tanh", "max_pool"), *DEFAULT.stages[1:])}, 2),
        ],
    )
    def test_others_are_computed_as_ever(self, attributes, number):
        assert len(self.calls(**attributes)) == number

    def test_none_where_the_feature_maps_between_are_asked_for(self):
        plain, fuses, calls = self.both()
        variables = jax.eval_shape(plain.init, jax.random.key(0), self.IMAGES)
        noted = functools.partial(fuses.apply, mutable="intermediates")
        _, maps = jax.eval_shape(noted, variables, self.IMAGES)
        assert "lrn1" in maps["intermediates"] and not calls


class TestAskedFor:
    def test_without_a_gpu_is_refused_in_one_line(self, config, tmp_path):
        config.fused_pooling = True
        with pytest.raises(InputError, match=r"fused_pooling=True needs an NVIDIA GPU.*cpu") as e:
            train_and_evaluate(config, tmp_path / "run")
        assert "\n" not in str(e.value)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("installed", [None, "1.18.1", "2.0.0"])
    def test_without_warp_names_the_package(self, installed, monkeypatch):
        def version(name):
            if installed is None:
                raise metadata.PackageNotFoundError(name)
            return installed

        monkeypatch.setattr(fused, "_on_nvidia_gpu", lambda: True)
        monkeypatch.setattr(metadata, "version", version)
        with pytest.raises(InputError, match=re.escape(f"pip install '{fused.WARP}'")):
            fused.refuse_missing()

    def test_by_a_run_whose_network_is_used_elsewhere(self, config):
        config.fused_pooling = True
        assert fused.from_config(config) is None

    def test_where_it_can_run(self, config, monkeypatch):
        monkeypatch.setattr(fused, "_on_nvidia_gpu", lambda: True)
        monkeypatch.setattr(metadata, "version", lambda name: "1.20.0rc1")
        assert fused.from_config(config) is None
        config.fused_pooling = True
        fused.refuse_missing()
        assert fused.from_config(config) is fused.relu_pool


@pytest.fixture
def warp():
    """Return NVIDIA Warp, or skip the test."""
    return pytest.importorskip("warp")


@pytest.fixture(params=["one row", "whole columns"])
def rows(request, monkeypatch):
    """Let a thread compute one row, as for few images, or all of a column, as for many."""
    monkeypatch.setattr(fused, "ENOUGH_THREADS", 2**18 if request.param == "one row" else 1)
    both_ways.clear_cache()


def inputs(shape, dtype):
    """Return x, bias and the gradient of relu_pool's output."""
    rng = np.random.default_rng(0)
    out = shape[0], (shape[1] - 3) // 2 + 1, (shape[2] - 3) // 2 + 1, shape[3]
    x = jnp.asarray(rng.normal(0, 5, shape), dtype)
    bias = jnp.asarray(rng.normal(0, 1, shape[3]), jnp.float32)
    return x, bias, jnp.asarray(rng.normal(0, 1, out), dtype)


@functools.partial(jax.jit, static_argnums=(3, 4))
def both_ways(x, bias, g, lrn, columns):
    y, vjp = jax.vjp(functools.partial(fused.relu_pool, lrn=lrn, columns=columns), x, bias)
    return y, *vjp(g)


def in_float64(x, bias, g, lrn, columns):
    """Return what `both_ways` should, by the formulas of the paper in NumPy."""
    x, bias, g = (np.asarray(v, np.float64) for v in (x, bias, g))
    a = np.maximum(x + bias, 0)
    apart = a.reshape(*a.shape[:-1], columns, -1)
    if lrn:
        k, alpha = lrn
        constants = (k, 5, alpha, 0.75)
        normalized = reference.local_response_norm(apart, *constants).reshape(a.shape)
    else:
        normalized = a
    y = reference.max_pool(normalized, 3, 2)
    da = reference.max_pool_gradient(normalized, g, 3, 2)
    if lrn:
        da = reference.local_response_norm_gradient(apart, da.reshape(apart.shape), *constants)
        da = da.reshape(a.shape)
    dx = np.where(a > 0, da, 0)
    return y, dx, dx.sum((0, 1, 2))


@pytest.mark.slow
class TestKernels:
    SHAPES = [((2, 9, 11, 16), 1), ((1, 8, 10, 32), 2), ((1, 3, 3, 8), 1), ((3, 7, 13, 24), 1)]

    @pytest.mark.parametrize("lrn", [LRN, None])
    @pytest.mark.parametrize(("shape", "columns"), SHAPES)
    def test_float32_agrees_with_the_formulas(self, warp, rows, shape, columns, lrn):
        arrays = inputs(shape, "float32")
        agree(
            both_ways(*arrays, lrn, columns),
            in_float64(*arrays, lrn, columns),
            rtol=5e-6,  # the place takes four of the 23 bits of d^-1/2
        )

    @pytest.mark.parametrize("lrn", [LRN, None])
    def test_bfloat16_is_rounded_only_at_the_end(self, warp, rows, lrn):
        arrays = inputs((2, 15, 13, 48), "bfloat16")
        got, want = both_ways(*arrays, lrn, 1), in_float64(*arrays, lrn, 1)
        for one, other, most in zip(got, want, (3e-3, 3e-3, 1e-5), strict=True):
            difference = np.asarray(one, np.float64) - other
            assert np.linalg.norm(difference) <= most * np.linalg.norm(other)

    def test_equal_maxima_give_the_gradient_to_the_first(self, warp, rows):
        x = np.random.default_rng(1).integers(-1, 3, (2, 9, 9, 8)).astype(np.float32)
        x[x == 0] = -0.0
        _, bias, g = inputs(x.shape, "float32")
        arrays = x, jnp.full_like(bias, -0.0), g
        agree(both_ways(*arrays, None, 1), in_float64(*arrays, None, 1), rtol=1e-6)

    def test_nothing_passes_a_window_of_zeros(self, warp):
        x, bias, g = inputs((1, 5, 5, 8), "float32")
        y, dx, db = both_ways(-jnp.abs(x), 0 * bias, g, LRN, 1)
        assert not y.any() and not dx.any() and not db.any()

    def test_nan_stays_nan(self, warp):
        x, bias, g = inputs((1, 7, 7, 16), "float32")
        sick = x.at[0, 4, 4, 8].set(jnp.nan)
        y = np.asarray(both_ways(sick, bias, g, LRN, 1)[0])
        well = np.asarray(both_ways(x, bias, g, LRN, 1)[0])
        ill = np.zeros(y.shape, bool)
        ill[0, 1:, 1:, 6:11] = True  # its four windows, and the channels that normalize by it
        np.testing.assert_array_equal(np.isnan(y), ill)
        np.testing.assert_array_equal(y[~ill], well[~ill])

    def test_recomputed_for_the_backward_pass(self, warp):
        x, bias, g = inputs((1, 7, 7, 8), "float32")
        op = functools.partial(fused.relu_pool, lrn=LRN)
        _, vjp = jax.vjp(jax.checkpoint(op), x, bias)
        jax.tree.map(np.testing.assert_array_equal, vjp(g), jax.vjp(op, x, bias)[1](g))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "devices", "parts"), [("pmap", 4, 2), ("split", 2, 1)])
def test_a_training_step_over_devices_is_the_same(warp, config, digits, kind, devices, parts):
    config.model.features, config.model.groups = (16, 16, 16), 2
    config.momentum, config.weight_decay, config.learning_rate = 0.0, 0.0, 1.0
    config.parallel, config.accumulate_steps = kind, parts
    step_of = functools.partial(train_step, config=config, num_train=1438)

    def after_a_step(relu_pool, monkeypatch):
        monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:devices])
        monkeypatch.setattr(jax, "device_count", lambda: devices)
        monkeypatch.setattr(jax, "local_device_count", lambda: devices)
        sharding = parallel.sharding(config)
        batch = next(data.train_batches(digits, seed=0, batch_size=config.batch_size))
        model = model_lib.from_config(config, sharding.column_axis, relu_pool)
        spread = sharding.map(functools.partial(step_of, model=model), updates_state=True)
        state = initial_state(config, statistics_of(digits, config.augment))
        arguments = sharding.replicate(state), sharding.shard(batch)
        program = spread.lower(*arguments)
        assert ("fused_backward" in program.as_text()) == (relu_pool is not None)
        state, metrics = program.compile()(*arguments)
        values = {name: one_value(value) for name, value in metrics.items()}
        return sharding.unreplicate(state).opt_state.trace, values

    with pytest.MonkeyPatch.context() as patch:
        agree(after_a_step(fused.relu_pool, patch), after_a_step(None, patch), rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [75, 80, 90, 100])
def test_compiles_for_gpus_without_one(warp, architecture, tmp_path):
    """For T4, A100, H100 and H200, B200. Feature maps are read and written 16 bytes at a time."""
    from alexnet_jax import fused_kernels

    def code(name, lrn, suffix):
        files = warp.compile_aot_module(
            getattr(fused_kernels, name)(warp.bfloat16, lrn).module,
            arch=architecture,
            module_dir=tmp_path / name / str(lrn) / suffix,
            use_ptx=suffix == ".ptx",
        )
        [file] = [file for file in files if file.suffix == suffix]
        return file.read_bytes()

    for kernel in (("forward", True), ("backward", True), ("backward", False)):
        ptx = code(*kernel, ".ptx").decode()
        assert f".target sm_{architecture}" in ptx
        assert re.search(r"ld\.global\S*\.v4", ptx) and re.search(r"st\.global\S*\.v4", ptx)
        assert code(*kernel, ".cubin")  # assembled: each instruction exists there
