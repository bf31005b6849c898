"""Devices: one function over all of them, the state on each, batches sharded.

The functions that a sharding maps over the devices see one device's share of the batch and the axis
DATA over the shares; they do not depend on the number of devices.
"""

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from alexnet_jax.errors import InputError
from alexnet_jax.state import TrainState

DATA, MODEL = "data", "model"


class Pmap:
    """Every device has the whole network and its share of the batch; arrays have a device axis."""

    column_axis = None

    def __init__(self) -> None:
        self.shares = jax.device_count()

    def map(self, function: Callable, *, updates_state: bool = False) -> Any:
        """Return `function(state, batch)` over all devices; `state` is replicated, `batch` sharded.

        A function that `updates_state` returns (state, metrics), and its `state` is donated; what
        any other function returns is equal on all devices. The result has `lower` as jax.jit's has.
        """
        return jax.pmap(function, axis_name=DATA, donate_argnums=(0,) if updates_state else ())

    def replicate(self, tree: Any) -> Any:
        """Return the one copy of a state, or of a part of it, on the devices of all processes."""
        everywhere = NamedSharding(jax.sharding.Mesh(jax.devices(), DATA), PartitionSpec(DATA))

        def copies(leaf: Any) -> jax.Array:
            shape = (jax.device_count(), *leaf.shape)
            return jax.make_array_from_callback(shape, everywhere, lambda _: np.asarray(leaf)[None])

        return jax.tree.map(copies, tree)

    def unreplicate(self, tree: Any) -> Any:
        """Return one copy of a replicated state, or of a part of it, as NumPy arrays."""
        # A copy: on a CPU NumPy would share the memory that is donated to the next step.
        return jax.tree.map(lambda leaf: np.array(leaf.addressable_data(0)[0]), tree)

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return this process's rows of a batch as (local devices, rows of one device, ...)."""
        return {
            name: rows.reshape(jax.local_device_count(), -1, *rows.shape[1:])
            for name, rows in batch.items()
        }


class Split:
    """Pairs of devices share the network as in the paper, one column each; pairs share the batch.

    Arrays are global, over a mesh (DATA, MODEL) of (pairs, 2): parameters and velocity are halved
    along their last axis, the units; all else is on every device. Figure 2 of the paper.
    """

    column_axis = MODEL

    def __init__(self) -> None:
        if jax.local_device_count() % 2:
            raise InputError(
                "config.parallel='split' divides the network between pairs of devices; their"
                f" number here is {jax.local_device_count()}: take an even one, or parallel='pmap'"
                " (the same network)"
            )
        # Processes number their devices one after the other, so that pairs do not cross them.
        self.mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(-1, 2), (DATA, MODEL))
        self.shares = jax.device_count() // 2

    def map(self, function: Callable, *, updates_state: bool = False) -> Any:
        """As `Pmap.map`."""

        def over_mesh(state: TrainState, batch: Any) -> Any:
            specs = self._specs(state)
            return jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=(specs, PartitionSpec(DATA)),
                out_specs=(specs, PartitionSpec()) if updates_state else PartitionSpec(),
                check_vma=False,  # the step itself says where devices agree, as under pmap
            )(state, batch)

        return jax.jit(over_mesh, donate_argnums=(0,) if updates_state else ())

    def replicate(self, tree: Any) -> Any:
        """As `Pmap.replicate`; a part is taken to be of what is on every device."""
        shardings = jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), self._specs(tree))
        return jax.device_put(tree, shardings)

    def unreplicate(self, tree: Any) -> Any:
        """As `Pmap.unreplicate`."""

        def whole(leaf: jax.Array) -> np.ndarray:
            if leaf.is_fully_replicated:
                return np.array(leaf.addressable_data(0))
            halves = {shard.index[-1].start or 0: shard.data for shard in leaf.addressable_shards}
            return np.concatenate([halves[start] for start in sorted(halves)], axis=-1)

        return jax.tree.map(whole, tree)

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the global batch of which these are this process's rows."""
        rows = NamedSharding(self.mesh, PartitionSpec(DATA))
        return {n: jax.make_array_from_process_local_data(rows, v) for n, v in batch.items()}

    def _specs(self, tree: Any) -> Any:
        """Return the PartitionSpec of each leaf."""

        def halved(leaf: Any) -> PartitionSpec:
            return PartitionSpec(*[None] * (leaf.ndim - 1), MODEL)

        everywhere = jax.tree.map(lambda _: PartitionSpec(), tree)
        if not isinstance(tree, TrainState):
            return everywhere
        return everywhere.replace(
            params=jax.tree.map(halved, tree.params),
            opt_state=jax.tree.map(halved, tree.opt_state),
        )


def sharding(config: ConfigDict) -> Pmap | Split:
    """Return how `config.parallel` lays network and batches out over the devices.

    Raises InputError unless the devices can be paired, where they must be, all shares of
    `config.batch_size` are equal, and so are the `config.accumulate_steps` parts of a share.
    """
    chosen = Split() if config.parallel == "split" else Pmap()
    what = "devices" if chosen.column_axis is None else "pairs of devices"
    if config.batch_size % chosen.shares:
        below = config.batch_size // chosen.shares * chosen.shares
        options = [str(n) for n in (below, below + chosen.shares) if n]
        raise InputError(
            f"config.batch_size={config.batch_size} cannot be divided over {chosen.shares} {what};"
            f" take {' or '.join(options)}"
        )
    share = config.batch_size // chosen.shares
    if share % config.accumulate_steps:
        options = [str(n) for n in range(1, share + 1) if share % n == 0]
        raise InputError(
            f"config.accumulate_steps={config.accumulate_steps} does not divide the {share} rows of"
            f" config.batch_size={config.batch_size} that each of {chosen.shares} {what} has;"
            f" take one of {', '.join(options)}"
        )
    return chosen


def compiled(*lowered: Any, unsearched: Sequence[Any] = ()) -> list[Any]:
    """Return the `lowered` programs compiled, and the `unsearched` after them, side by side.

    On a GPU XLA times many ways of each convolution and of each fusion, which is most of a minute.
    A program that is `unsearched` gets XLA's first choices instead, the same ones in every run.
    """
    # On other devices the option has no effect, but would compile what is kept of earlier runs.
    quick = {"xla_gpu_autotune_level": 0} if jax.default_backend() == "gpu" else None
    programs = [(each, None) for each in lowered] + [(each, quick) for each in unsearched]
    with concurrent.futures.ThreadPoolExecutor(len(programs)) as pool:
        return list(pool.map(lambda program: program[0].compile(program[1]), programs))


def round_up(batch_size: int) -> int:
    """Return the next batch size that all devices get equal shares of."""
    return -(-batch_size // jax.device_count()) * jax.device_count()


def devices() -> str:
    """Return number and kind of the devices for people."""
    return f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"


def to_host(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return one device's copy of each of `arrays`, which every device has, sent to the host.

    `.item()` of them then waits for the devices to come so far, and for no copy after that.
    """
    copies = {name: array.addressable_data(0) for name, array in arrays.items()}
    for copy in copies.values():
        copy.copy_to_host_async()
    return copies


def example_ids(rows: int) -> jax.Array:
    """Return the positions in the global batch of the `rows` that this device holds."""
    return jax.lax.axis_index(DATA) * rows + jnp.arange(rows)


def norm(tree: Any, column_axis: str | None) -> jax.Array:
    """Return the Euclidean norm of `tree`, of which this device may hold a column."""
    square = optax.tree.norm(tree, squared=True)
    return jnp.sqrt(jax.lax.psum(square, column_axis) if column_axis else square)
