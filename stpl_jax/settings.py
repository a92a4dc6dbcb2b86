"""A run's settings as they come from a file and the command line: checked as a whole before anything begins."""

import difflib
import json

from ml_collections import ConfigDict

from input_pipeline.errors import UserError, capped
from input_pipeline.files import expand
from stpl_jax.checkpoint import CheckpointError
from stpl_jax.methods import METHODS, section_of
from stpl_jax.renamed_settings import as_now, new_spelling
from stpl_jax.rows import row_config, row_names
from stpl_jax.setting_rules import PATH, problem, problems_together, published_key, rule_of

# Settings that may change between the parts of one run: they do not change what is computed. `optim.accumulate` goes
# with the number of devices: what has to stay is the number of clips in a step, which `train` compares.
_FREE = (
    "steps",
    "optim.steps",
    "optim.accumulate",
    "log_every",
    "flow.batch",
    "compare_with",
    "cpu_devices",
    "cpu_xla_flags",
    "compilation_cache",
    "checkpoint",
    "evaluate",
    "report",
    "label",
    "analysis",
    "rows",
    "init_from",
    "data.threads",
    "data.workers",
    "data.prefetch",
    "data.prepared_dir",
    "world",
)


class SettingsError(UserError):
    """Settings that are out of range, unknown, or do not fit together; the message lists all of them."""


def flat(tree, prefix=""):
    """Returns a nested dict or `ConfigDict` as one dict of names with dots."""
    if not isinstance(tree, dict | ConfigDict):
        return {prefix[1:]: tree}
    return {key: value for name, sub in tree.items() for key, value in flat(sub, f"{prefix}.{name}").items()}


def _within_row(key):
    """The setting that a key is of: of what a row changes, without the row's name."""
    return key.removeprefix("rows.").partition(".")[2] if key.startswith("rows.") else key


def _is_path(key):
    return rule_of(_within_row(key)) is PATH


def expand_paths(config):
    """Returns the configuration with absolute paths: `~` is the home folder, relative ones start in the current one."""
    config = config.copy_and_resolve_references()
    given = {key: value for key, value in flat(config).items() if _is_path(key) and isinstance(value, str) and value}
    config.update_from_flattened_dict({key: str(expand(value)) for key, value in given.items()})
    return config


def check(config):
    """Checks every setting of a run and of each row that it has.

    Args:
      config: the run's configuration.

    Raises:
      SettingsError: values out of range or of another kind, keys of a row that no setting has, rows that there are not;
        lists all of them.
    """
    own = {key: value for key, value in flat(config).items() if not key.startswith("rows.")}
    found = [line for key, value in own.items() if (line := problem(key, value))]
    there = [key for key in own if rule_of(key) is not None]
    found += [
        f"config.{key}: there is no such setting" + (new_spelling(key, value) or _near(_within_row(key), there))
        for key, value in flat(config).items()
        if rule_of(_within_row(key)) is None
    ]
    found += [
        f"config.{key}: there is no such setting of the optimiser" + _near(name, own)
        for key in own
        if (name := published_key(key)) and name not in own
    ]
    known = tuple(dict.fromkeys((*METHODS, *config.rows)))
    for key, names in (("method", (config.method,)), ("compare_with", config.compare_with)):
        found += [
            f"config.{key}: expected methods or rows of config.rows, and {name!r} is neither"
            + (_near(name, known) or ".")
            + f" There are {', '.join(known)}"
            for name in names
            if name not in known
        ]
    if not found:
        # What a row is made of can be looked at once each value is of the kind that it should be.
        for row in dict.fromkeys((config.method, *row_names(config), *config.rows)):
            found += [
                line for line in _problems_of_row(config, row, own) if line.removeprefix(f"row {row}: ") not in found
            ]
    if found:
        count = "1 setting does" if len(found) == 1 else f"{len(found)} settings do"
        raise SettingsError(
            f"{count} not fit:\n"
            + "\n".join(capped([f"  {line}" for line in found], 40))
            + "\nconfigs/base.py says what each setting means."
        )


def _near(name, known):
    return "".join(f"; did you mean {near}?" for near in difflib.get_close_matches(str(name), known, 1))


def _problems_of_row(config, row, own):
    settings = row_config(config, row)
    changed = {k: v for k, v in flat(settings).items() if not k.startswith("rows.") and own.get(k) != v}
    found = [line for key, value in changed.items() if (line := problem(key, value))]
    # Rows that stand ready and are not asked for need not fit the rest of this run.
    if not found and row in row_names(config):
        found = problems_together(settings)
    return found if row == config.method else [f"row {row}: {line}" for line in found]


def check_same_run(config, stored, folder):
    """Compares a row's configuration with the one that it was begun with; what does not change the result may differ.

    Args:
      config: the row's configuration.
      stored: the same as a dict, from a checkpoint or an `evaluation.json`.
      folder: of the row, for the message.

    Raises:
      CheckpointError: lists every setting that differs.
    """
    now, before = flat(json.loads(config.to_json_best_effort())), as_now(flat(stored))
    for name, value in before.items():
        if spelling := new_spelling(name, value):
            raise CheckpointError(f"{folder} was begun with {name}={value}{spelling}. Use another --workdir.")

    def value(settings, name):
        return expand(settings[name]) if _is_path(name) else settings[name]

    # Other methods' settings say nothing about this row, and what its own publication says was put into `optim`.
    own = f"methods.{section_of(config.method)}."

    def counts(name):
        if name.startswith("methods."):
            return name.startswith(own) and not name.startswith(f"{own}own.")
        return not any(name == f or name.startswith(f + ".") for f in free)

    # Kept frames move with the working directory, and their clips are compared by what is in them.
    free = (*_FREE, *(["data.target.raw_dir"] if config.data.target.name == "own_video" else []))
    changed = [
        f"  {name}: was {before[name]!r}, is {now[name]!r}"
        # A setting that did not exist when the row was begun, or no longer does, cannot be compared.
        for name in sorted(now.keys() & before.keys())
        if value(now, name) != value(before, name) and counts(name)
    ]
    if changed:
        raise CheckpointError(
            f"{folder} was begun with other settings:\n"
            + "\n".join(capped(changed, 40))
            + "\nUse another --workdir, or these settings."
        )
