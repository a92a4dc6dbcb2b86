"""Files that a run writes and reads again: written whole or not at all, read with errors that name the file."""

import contextlib
import json
import os
import tempfile
from pathlib import Path

from input_pipeline.errors import UserError


def expand(path):
    """Returns a path that a person gave: `~` is the home folder, and what is relative starts in the current one.

    Args:
      path: text or `Path`; None and the empty text stay as they are.

    Returns:
      An absolute `Path`, or what was given.

    Raises:
      UserError: `~NAME` of a user that there is not.
    """
    try:
        return Path(path).expanduser().absolute() if path else path
    except RuntimeError:
        raise UserError(f"{path}: there is no user of that name, whose home folder it could start in.") from None


@contextlib.contextmanager
def whole_file(path):
    """Gives the name of a temporary file beside `path`; when the block ends, it takes `path`'s place.

    The data is on the disk before the name changes, so that neither a kill nor a full disk leaves half a file under
    `path`. An exception in the block removes the temporary file and leaves what was there before.

    Args:
      path: file to write; its folder is made if it is missing.

    Yields:
      `Path` of the temporary file, with the same ending.

    Raises:
      OSError: the file cannot be written; the message names `path`.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:100]}.", suffix=f".partial{path.suffix}", dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    temporary = Path(name)
    try:
        os.close(handle)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; these are shared like any other.
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
    except OSError as error:
        # The temporary file's name would say nothing to a reader. Without a number, it is a message of our own.
        if error.errno is None or error.filename not in (None, name):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


# Read once, as the module is loaded: reading it changes it for a moment, in all threads.
_UMASK = _umask()


def write_atomically(path, content):
    """Writes a file so that a reader, or a run that dies, never leaves or sees half of it.

    Args:
      path: file to write; its folder is made if it is missing.
      content: text (written as UTF-8) or bytes.

    Raises:
      OSError: the file cannot be written; the message names it, and what was there before stays.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def read_json(path, remedy, keys=()):
    """Reads a JSON file that holds one object.

    Args:
      path: file.
      remedy: what to do about a damaged file, a sentence.
      keys: names that the object has to hold.

    Returns:
      dict, or None where there is no such file.

    Raises:
      UserError: the file is empty, cut off or something else; names the file, what was found, and the remedy.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = json.loads(content.decode())
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
        what = "an empty file" if not content.strip() else f"{len(content)} bytes that end or break early ({error})"
        raise UserError(f"{path}: expected JSON, found {what}. {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(found).__name__}. {remedy}")
    missing = [key for key in keys if key not in found]
    if missing:
        raise UserError(f"{path}: expected the keys {', '.join(keys)}, and {', '.join(missing)} is missing. {remedy}")
    return found


def read_text_lines(path, what):
    """Reads the lines of a text file in UTF-8 or, where it starts with the mark of another Unicode form, in that.

    Args:
      path: file.
      what: what the file is for, the beginning of the error.

    Returns:
      List of lines without blanks at their ends; empty lines are left out.

    Raises:
      UserError: there is no such file, or it is not text.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{what}: no such file: {path}.")
    content = path.read_bytes()
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
    encoding = next((name for mark, name in marks.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: {path} is not a text file in UTF-8 ({error}). Save it as UTF-8.") from None
    if "\0" in text:
        raise UserError(f"{what}: {path} holds zero bytes: UTF-16 without its mark, or no text. Save it as UTF-8.")
    return [line.strip() for line in text.splitlines() if line.strip()]
