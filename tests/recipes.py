"""The recipes in configs/, with what some of them leave to the command line or to the data."""

import importlib

from ml_collections import ConfigDict

from alexnet_jax.config import with_num_classes
from tests.runs import ROOT

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("[!_]*.py"))


def of_name(name: str) -> ConfigDict:
    """Return the recipe of this name; of a folder, with a path and three classes."""
    config = importlib.import_module(f"configs.{name}").get_config()
    if config.dataset.name == "folder":
        config.dataset.path = "images"
    return with_num_classes(config, 3)
