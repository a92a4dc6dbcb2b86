"""Reading and writing PyTorch's files: the one module that imports torch."""

import hashlib
import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input_pipeline.errors import capped
from stpl_jax.convert import ConvertError
from stpl_jax.convert.containers import state_dict_of

_INSTALL = "Reading and writing PyTorch's files needs PyTorch: pip install -r requirements-convert.txt"
_ZIP_START = b"PK\x03\x04"


def _torch():
    try:
        import torch
    except ImportError as error:
        raise ConvertError(f"{_INSTALL} ({error}).") from None
    return torch


class StateDict(NamedTuple):
    """What a file holds.

    Attributes:
      path: the file.
      arrays: name -> numpy array, float32 where the file has any floating point type.
      others: the numbers beside the `state_dict`, such as `epoch`.
      notes: lines of text: what was taken off, left out or rounded.
    """

    path: Path
    arrays: dict
    others: dict
    notes: list


def sha256(path):
    """Returns a file's SHA-256, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state_dict(path, known=(), key=None):
    """Reads the tensors of a `.pth` file: a `state_dict`, or nested mappings that have one; see `containers`.

    Nothing in the file is executed (`weights_only=True`), and a zip container is mapped into memory instead of read.
    Prefixes of wrappers are taken off, `num_batches_tracked` is left out.

    Args:
      path: file.
      known: names of tensors that tell the network, such as `containers.NAMES`.
      key: which network, where the file holds several.

    Returns:
      A `StateDict`.

    Raises:
      ConvertError: no such file, no checkpoint, a truncated one, one with code in it, or something else than tensors;
        several networks and no key.
    """
    torch, path = _torch(), Path(path)
    content = _load(torch, path)
    numbers = content.items() if isinstance(content, Mapping) else ()
    others = {k: float(v) for k, v in numbers if isinstance(v, int | float)}
    content, notes = state_dict_of(content, known, torch.is_tensor, path, key)
    if not isinstance(content, Mapping) or not content:
        raise ConvertError(f"{path} holds {_describe(content)}, and a state_dict (names and tensors) is expected.")
    wrong = [
        f"  {name!r}: expected a tensor and its name, found {_describe(value)}"
        for name, value in content.items()
        if not torch.is_tensor(value) or not isinstance(name, str)
    ]
    if wrong:
        raise ConvertError(f"{path} is not a state_dict (names and tensors):\n" + "\n".join(capped(wrong)))

    kept = {name: value for name, value in content.items() if name.split(".")[-1] != "num_batches_tracked"}
    if len(kept) < len(content):
        notes.append(f"{len(content) - len(kept)} counters num_batches_tracked left out")
    rounded = sum(value.dtype == torch.float64 for value in kept.values())
    if rounded:
        notes.append(f"{rounded} tensors rounded from float64 to float32")
    arrays = {}
    for name, value in kept.items():
        value = value.detach()
        if value.layout is not torch.strided or value.is_quantized:
            raise ConvertError(f"{path}: {name} is a sparse or quantised tensor, and a plain one is expected.")
        arrays[name] = (value.to(torch.float32) if value.is_floating_point() else value).numpy()
    return StateDict(path, arrays, others, notes)


def _load(torch, path):
    if not path.is_file():
        raise ConvertError(f"{path}: no such file.")
    zipped = zipfile.is_zipfile(path)
    with open(path, "rb") as file:
        if file.read(4) == _ZIP_START and not zipped:
            raise ConvertError(f"{path} is truncated or damaged: a zip container without its end. Download it again.")
    try:
        # Mapped into memory, checksums are not looked at.
        damaged = zipfile.ZipFile(path).testzip() if zipped else None
        if damaged:
            raise ConvertError(f"{path} is damaged: the checksum of {damaged} in it is wrong. Download it again.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on containers that torch itself no longer writes
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except ConvertError:
        raise
    except pickle.UnpicklingError as error:
        # Torch's own text advises to switch its protection off; that advice is not passed on.
        text = " ".join(str(error).split())
        code = re.search(r"(?:GLOBAL|[Gg]lobal:?)\s+([\w.]+\.\w+)", text)
        if code:
            raise ConvertError(
                f"{path} is a pickle with code in it ({code[1]}), and reading such a file would run it. Expected: a "
                "state_dict, tensors and names alone. Ask its owner for torch.save(model.state_dict(), FILE)."
            ) from None
        reason = re.search(r"WeightsUnpickler error: (.+?)( Check the documentation|$)", text)
        detail = f" ({reason[1]})" if reason else ""
        raise ConvertError(
            f"{path} is not a state_dict: a pickle with code or foreign objects in it, or a damaged file{detail}."
        ) from None
    # Whatever else torch trips over, it is the file's fault: it fails in a dozen ways on truncated ones.
    except Exception as error:
        reason = str(error).split(". ")[0].split("\n")[0]
        raise ConvertError(
            f"{path} is truncated, or not a PyTorch file ({type(error).__name__}{': ' if reason else ''}{reason})."
        ) from None


def _describe(value):
    if isinstance(value, Mapping):
        return f"a mapping with the keys {', '.join(map(repr, list(value)[:8]))}" if value else "an empty mapping"
    return f"{type(value).__name__} {value!r}"[:80]


def write_file(path, arrays, others=None):
    """Writes a `state_dict`, whole or not at all, in the container that PyTorch before 1.6 reads, too.

    Args:
      path: new file.
      arrays: name -> numpy array.
      others: if given, the state_dict is put into a mapping under `state_dict`, beside these.

    Raises:
      ConvertError: there is such a file.
    """
    torch, path = _torch(), Path(path)
    check_new_file(path)
    tensors = {name: torch.from_numpy(np.require(value, requirements="CW")) for name, value in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            content = tensors if others is None else {**others, "state_dict": tensors}
            torch.save(content, file, _use_new_zipfile_serialization=False)
            file.flush()
            os.chmod(file.name, 0o644)  # temporary files are made for their owner alone
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def check_new_file(path):
    """Raises `ConvertError` where there is a file or folder already."""
    if Path(path).exists():
        raise ConvertError(f"{path} is there already: give another name, or remove it.")


def versions():
    """Returns PyTorch's version, for a checkpoint's `meta`."""
    return {"torch": _torch().__version__}
