"""What a person sees of a command line that cannot be run: one line, and no traceback. Imports nothing that is slow."""

import contextlib
import os
import re
import sys
import traceback
from pathlib import Path

from absl import app

from input_pipeline.errors import UserError
from stpl_jax.renamed_settings import new_spelling
from stpl_jax.stopping import StopAtOnce, Stopped


def parse(argv):
    """Reads the command line and the configuration file; a mistake in either ends with one line."""
    try:
        return app.parse_flags_with_usage(argv)
    except Exception as error:  # a configuration file is a program: anything can go wrong in it
        for argument, following in zip(argv, [*argv[1:], ""], strict=True):
            key, separator, value = argument.partition("=")
            if spelling := new_spelling(key.removeprefix("--config."), value if separator else following):
                sys.exit(f"{key}: there is no such setting{spelling}.")
        text = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
        key = re.search(r"'(\w+)'", text)
        given = [a for a in argv if a.startswith("--config.") and key and key[1] in a.partition("=")[0].split(".")]
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_file()]
        frames = [f for f in frames if "site-packages" not in f.filename and f.filename != __file__]
        at = [f"{f.filename}, line {f.lineno}" for f in frames][-1:] or [a for a in argv if a.startswith("--config=")]
        sys.exit(": ".join([type(error).__name__, *(given or at)[:1], text]))


@contextlib.contextmanager
def told_in_one_line():
    """Runs a program: what a person can mend, and being told to stop, end it with one line and without a traceback."""
    try:
        with StopAtOnce() as stop:
            yield
            stop.check()
    except Stopped as stopped:
        several, first = _place()
        if first:
            _tell(stopped.message, several)
        if not several:
            # Everything is closed by now. Threads in which a library is still at work can crash an interpreter that
            # shuts down around them.
            sys.stdout.flush()
            os._exit(stopped.code)
        raise
    except (UserError, OSError) as error:
        _tell(f"{type(error).__name__}: {error}", _place()[0])
        sys.exit(getattr(error, "exit_code", 1))


def _place():
    """Returns whether this is one of several processes, and whether it is the first; starts no device."""
    jax = sys.modules.get("jax")
    several = jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1
    return several, not several or jax.process_index() == 0


def _tell(line, several):
    which = f"process {sys.modules['jax'].process_index()}: " if several else ""
    print(which + line, file=sys.stderr, flush=True)
