"""The recipes as a package: `from alexnet_jax.configs import alexnet`.

In the repository their folder is configs/ at its top, which this module points to. A wheel holds
that folder as alexnet_jax/configs/, which Python prefers to this file.
"""

import pathlib
from typing import TYPE_CHECKING, Any

__path__ = [str(pathlib.Path(__file__).parents[1] / "configs")]

if TYPE_CHECKING:  # which does not follow __path__

    def __getattr__(name: str) -> Any: ...
