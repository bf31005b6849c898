"""`python -m alexnet_jax` is the same as the command `alexnet_jax`."""

from alexnet_jax.command_line import run

run()
