"""Finding the network's state_dict in what a file holds: containers, wrappers' prefixes, several networks side by side.

Public checkpoints put it under `state_dict`, `model`, `ema`, `teacher` and so on, nested or not, and wrappers put
`module.`, `_orig_mod.`, `model.` before every name. A network is recognised by names that it has in any wrapping.
"""

from collections.abc import Mapping
from typing import NamedTuple

from input_pipeline.errors import capped
from stpl_jax.convert import ConvertError

_STAGES = tuple(f"layer{stage}.0.conv1.weight" for stage in (1, 2, 3, 4))
# Names that tell a network, by the sub-command that reads it.
NAMES = {
    "accel": _STAGES,
    "deeplab": _STAGES,
    "imagenet": tuple(f"Scale.{name}" for name in _STAGES),
}
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")
_DEEPEST = 5


class _Network(NamedTuple):
    """A network in a file: keys that lead to the mapping, and what stands before each of its names there."""

    keys: tuple[str, ...]
    mapping: Mapping
    prefix: str

    @property
    def names(self):
        return [
            name
            for name, value in self.mapping.items()
            if isinstance(name, str) and name.startswith(self.prefix) and not isinstance(value, Mapping)
        ]

    @property
    def label(self):
        """What `--key` calls it: the keys, and the prefix where it tells networks of one mapping apart."""
        alone = len(self.names) == len(self.mapping)
        return ".".join([*self.keys, *([] if alone else self.prefix.split(".")[:-1])]) or "."


def state_dict_of(content, known, is_tensor, path, key=None):
    """Takes the network's state_dict out of what a file holds.

    Args:
      content: what `torch.load` returns.
      known: names of tensors that the network has, see `NAMES`.
      is_tensor: tells tensors.
      path: the file, for messages.
      key: `--key`: which one, where there are several; None for the only one.

    Returns:
      Mapping of names without the wrappers' prefix, and lines of text that say what was read and left out. Where no
      network is recognised, what looks most like a state_dict.

    Raises:
      ConvertError: several could be meant, or the one that was asked for is not there; lists them.
    """
    mappings = list(_mappings(content, is_tensor))
    networks = [_Network(keys, m, prefix) for keys, m in mappings for prefix in _prefixes(m, known, is_tensor)]
    if not networks:
        # Something else than the network that is expected. Whoever reads it says what is missing.
        top = [(keys, m) for keys, m in mappings if not keys]
        networks = [_Network(keys, m, _common_prefix(m)) for keys, m in top or mappings]
    if key is not None:
        chosen = [network for network in networks if f".{network.label}".endswith(f".{key}")]
        if len(chosen) != 1:
            what = "names several of them" if chosen else "is not there"
            raise ConvertError(f"{path}: --key={key} {what}. It holds:\n" + "\n".join(_listed(chosen or networks)))
        networks = chosen
    if len(networks) > 1:
        raise ConvertError(f"{path} holds {len(networks)} networks. Choose one, by\n" + "\n".join(_listed(networks)))
    return _taken(networks[0], key is not None) if networks else (content, [])


def _taken(network, chosen):
    notes = [f"read: {network.label}"] if network.label != "." else []
    found = {name.removeprefix(network.prefix): network.mapping[name] for name in network.names}
    if network.prefix:
        notes.append(f"prefix {network.prefix} taken off")
        others = [name for name in network.mapping if name not in set(network.names)]
        if others:
            shown = ", ".join(map(str, others[:3]))
            notes.append(f"{len(others)} entries without that prefix left out: {shown}{', ...' * (len(others) > 3)}")
    else:
        found = dict(network.mapping)
    if chosen:
        # Other networks beside the tensors of the one that was chosen.
        found = {name: value for name, value in found.items() if not isinstance(value, Mapping)}
    return found, notes


def _listed(networks):
    return capped([f"  --key={network.label}: {len(network.names)} tensors" for network in networks])


def _mappings(content, is_tensor):
    """Yields (keys, mapping) for everything in nested mappings that holds tensors, each mapping once."""
    waiting, seen = [((), content)], set()
    while waiting:
        keys, found = waiting.pop(0)
        if not isinstance(found, Mapping) or id(found) in seen:
            continue
        seen.add(id(found))
        if any(is_tensor(value) for value in found.values()):
            yield keys, found
        # An optimiser's momenta may go by the names of the parameters.
        inner = [name for name in found if isinstance(name, str) and "optim" not in name.lower()]
        if len(keys) < _DEEPEST:
            waiting += [((*keys, name), found[name]) for name in inner]


def _prefixes(mapping, known, is_tensor):
    """Returns what stands before the known names in a mapping, for each network in it."""
    found = {}
    for name, value in mapping.items():
        if not isinstance(name, str) or not is_tensor(value):
            continue
        for ending in known:
            before = name.removesuffix(ending)
            # The Caffe layout's own prefix: another network than the one without it.
            if before != name and (not before or before.endswith(".")) and not before.endswith("Scale."):
                found[before] = None
    return list(found)


def _common_prefix(mapping):
    """Returns the wrappers' prefixes that all names have."""
    names, prefix = list(mapping), ""
    while more := next((w for w in _WRAPPERS if all(str(n).startswith(prefix + w) for n in names)), None):
        prefix += more
    return prefix
