"""TPUs that are not there, to compile for."""

import importlib.util
import os
import sys

import jax
from jax.experimental import topologies

HOW_TO_INSTALL = (
    "Compiling for a TPU needs its compiler, the package libtpu, and no TPU. It is not installed: "
    "pip install -r requirements-tpu-compile.txt (Linux on x86-64)."
)


def topology_devices(name):
    """Describes the devices of a topology that is not there.

    Raises:
      SystemExit: libtpu is not installed.
      ValueError: libtpu knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        sys.exit(HOW_TO_INSTALL)
    # Read when libtpu is loaded, below. This machine is no part of a TPU, so that there is no server to ask which part,
    # and no chip that a second process could take away.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"libtpu describes no topology {name!r}: {error}") from error
