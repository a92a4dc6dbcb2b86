"""Configurations where `ml_collections` is not installed: a GPU machine that only runs benchmarks need not have it."""

import importlib
import sys
import types


class Settings(dict):
    """A dict whose keys are attributes too: as much of `ml_collections.ConfigDict` as the files in configs/ use."""

    def __init__(self, values=()):
        super().__init__()
        for name, value in dict(values).items():
            self[name] = value

    def __setitem__(self, name, value):
        super().__setitem__(name, Settings(value) if type(value) is dict else value)

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"No setting {name!r}; there are {', '.join(self)}.") from None

    def __setattr__(self, name, value):
        self[name] = value

    def update(self, values):
        """Sets values; where both the old and the new one are settings, the old one is updated in its turn."""
        for name, value in values.items():
            if isinstance(value, dict) and isinstance(self.get(name), Settings):
                self[name].update(value)
            else:
                self[name] = value

    def to_dict(self):
        """Returns plain dicts, all the way down."""
        return {name: value.to_dict() if isinstance(value, Settings) else value for name, value in self.items()}


def _stand_in():
    """Modules that answer to what the files in configs/ import of `ml_collections`."""
    package, config_dict = types.ModuleType("ml_collections"), types.ModuleType("ml_collections.config_dict")
    package.ConfigDict = Settings
    package.config_dict = config_dict
    config_dict.placeholder = lambda kind: None
    return {module.__name__: module for module in (package, config_dict)}


def get_config(name):
    """Builds a configuration of configs/.

    Args:
      name: of the file, without its ending.

    Returns:
      A `ConfigDict`; where `ml_collections` is missing, `Settings` that hold the same.

    Raises:
      ModuleNotFoundError: there is no such file.
    """
    try:
        importlib.import_module("ml_collections")
        stand_in = {}
    except ImportError:
        stand_in = _stand_in()
    sys.modules.update(stand_in)
    try:
        return importlib.import_module(f"configs.{name}").get_config()
    finally:
        # Whoever else asks for the package shall learn that it is missing.
        for module in stand_in:
            del sys.modules[module]
