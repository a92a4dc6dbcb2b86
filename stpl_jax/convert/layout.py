"""Laying a state_dict beside the tensors that a network needs: what fits is taken over, what does not is listed."""

import dataclasses
import os
from collections.abc import Callable

import numpy as np
from flax import traverse_util

from input_pipeline.errors import capped
from stpl_jax.convert import ConvertError


@dataclasses.dataclass(frozen=True)
class Layout:
    """A network's tensors in both worlds.

    Attributes:
      what: what the network is, for messages.
      keys: tuples (name in the state_dict, path among the variables, kind).
      template: nested dict of the variables' shapes, such as `jax.eval_shape` gives it; may hold more than `keys`.
      to_flax, to_torch: turn an array of a kind into the other world's.
      group: turns a name in the state_dict into that of its line in the table.
    """

    what: str
    keys: tuple
    template: dict = dataclasses.field(repr=False)
    to_flax: Callable
    to_torch: Callable
    group: Callable

    def shapes(self):
        """Returns name -> shape that PyTorch has for it."""
        flat = traverse_util.flatten_dict(self.template)
        # One byte for each number, since only its shape is asked for.
        return {
            name: self.to_torch(np.broadcast_to(np.int8(0), flat[path].shape), kind).shape
            for name, path, kind in self.keys
        }

    def read(self, state_dict, advice=""):
        """Turns a state_dict into variables.

        Args:
          state_dict: a `torch_files.StateDict`.
          advice: what to say at the end of an error.

        Returns:
          Path among the variables -> numpy array.

        Raises:
          ConvertError: a tensor is missing, too many, of another shape, not of floating point or not finite; lists all.
        """
        expected, found = self.shapes(), state_dict.arrays
        missing = [f"{name}: expected {shape}, found missing" for name, shape in expected.items() if name not in found]
        extra = [
            f"{name}: expected missing, found {array.shape} {array.dtype}"
            for name, array in found.items()
            if name not in expected
        ]
        other, infinite = [], []
        for name, shape in expected.items():
            array = found.get(name)
            if array is None:
                continue
            if array.shape != shape or array.dtype != np.float32:
                other.append(f"{name}: expected {shape} float32, found {array.shape} {array.dtype}")
            elif not np.isfinite(array).all():
                count = np.count_nonzero(~np.isfinite(array))
                infinite.append(
                    f"{name}: expected finite numbers, found NaN or infinity in {count:,} of {array.size:,}"
                )
        kinds = {"missing": missing, "too many": extra, "of another shape or type": other, "not finite": infinite}
        problems = {kind: lines for kind, lines in kinds.items() if lines}
        if problems:
            counts = ", ".join(f"{len(lines)} {kind}" for kind, lines in problems.items())
            lines = [line for lines in problems.values() for line in capped([f"  {text}" for text in lines], 12)]
            raise ConvertError(
                f"{state_dict.path} does not hold {self.what}: expected {len(expected)} tensors, found {len(found)}; "
                f"{counts}:\n" + "\n".join(lines) + (f"\n{advice}" if advice else "")
            )
        return {path: self.to_flax(found[name], kind) for name, path, kind in self.keys}

    def write(self, variables, path):
        """Turns variables into a state_dict.

        Args:
          variables: nested dict of numpy arrays.
          path: where they come from, for messages.

        Returns:
          Name -> numpy array.

        Raises:
          ConvertError: other variables than the table's, or numbers that are not finite.
        """
        flat = traverse_util.flatten_dict(variables)
        paths = [place for _, place, _ in self.keys]
        if set(paths) != set(flat):
            lines = [f"  {'/'.join(p)}: expected, found missing" for p in paths if p not in flat]
            lines += [f"  {'/'.join(p)}: not expected" for p in flat if p not in set(paths)]
            raise ConvertError(f"{path} does not hold {self.what}:\n" + "\n".join(capped(lines)))
        bad = ["  " + "/".join(p) for p in paths if not np.isfinite(flat[p]).all()]
        if bad:
            raise ConvertError(f"{path} holds NaN or infinity:\n" + "\n".join(capped(bad)))
        return {name: self.to_torch(flat[place], kind) for name, place, kind in self.keys}

    def table(self, every=False):
        """Returns lines of text: each block's tensors and where they go (or each tensor, if `every`), and the sum."""
        shapes, groups = self.shapes(), {}
        for name, path, _ in self.keys:
            groups.setdefault(name if every else self.group(name), []).append((shapes[name], path))
        rows = [("key", "tensors", "parameters", "statistics", "largest", "destination")]
        sums = np.zeros(3, int)
        for name, members in groups.items():
            sizes = [(int(np.prod(shape)), path[0] == "params") for shape, path in members]
            counts = len(members), sum(n for n, p in sizes if p), sum(n for n, p in sizes if not p)
            sums += counts
            largest = max((shape for shape, _ in members), key=np.prod)
            place = os.path.commonprefix([path[1:] for _, path in members])
            rows.append((name, *(f"{n:,}" for n in counts), str(largest), "/".join(place)))
        rows.append(("total", *(f"{n:,}" for n in sums), "", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [
            "  ".join(
                text.rjust(width) if 0 < i < 4 else text.ljust(width)
                for i, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
