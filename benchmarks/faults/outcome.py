"""How a disturbed run ended, in one word, and the table of all of them."""

import dataclasses
import re

# In the order of the table's columns; the first three are what is wanted.
RIGHT = "right"  # the results are those of an undisturbed run
TOLD = "told"  # other results, and the output says why
REFUSED = "refused"  # an error that names what is wrong, and nothing of our own code
UNNAMED = "not named"  # an error that does not say in which file or setting
STACK = "stack trace"
WRONG = "silently wrong"  # another result, and not a word
HUNG = "hung"  # did not end by itself
KILLED = "crashed"  # ended by a signal that nobody sent
LEFT = "left over"  # a process outlived the run
KINDS = (RIGHT, TOLD, REFUSED, UNNAMED, STACK, WRONG, HUNG, KILLED, LEFT)
WANTED = (RIGHT, TOLD, REFUSED)

# The exit code of a run that is done and has left out part of its input.
_INCOMPLETE = 3
# What Python prints before a stack, in its own threads and processes too.
_TRACEBACK = "Traceback (most recent call last)"


@dataclasses.dataclass(frozen=True)
class Result:
    """How a process ended.

    Attributes:
      code: exit code, negative for a signal; None if it was stopped because it did not end.
      output: stdout and stderr as they came.
    """

    code: int | None
    output: str

    @property
    def last_line(self):
        """What stands at the end, where a person looks first."""
        lines = self.output.strip().splitlines()
        return lines[-1] if lines else ""

    @property
    def error_line(self):
        """The last line that begins with the name of an error, else the last one."""
        found = re.findall(
            r"^(?:process \d+: )?(?:[\w.]*(?:Error|Exception|Loss|Incomplete): |FATAL ).*", self.output, re.M
        )
        return found[-1] if found else self.last_line


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a case ended: one of `KINDS`, and what a person wants to know of it."""

    kind: str
    detail: str = ""


def classify(result, differing=(), named=True, right_codes=(0,)):
    """Judges the end of a process.

    Args:
      result: `Result`.
      differing: names of the results that are not those of an undisturbed run.
      named: whether the output names what is wrong.
      right_codes: exit codes of a run that came to its end.

    Returns:
      An `Outcome`.
    """
    if result.code is None:
        return Outcome(HUNG, result.last_line)
    if _TRACEBACK in result.output:
        return Outcome(STACK, result.error_line)
    if result.code in right_codes or result.code == _INCOMPLETE:
        if not differing:
            return Outcome(RIGHT)
        return Outcome(TOLD if named else WRONG, f"differ: {', '.join(list(differing)[:5])}")
    if result.code < 0:
        return Outcome(KILLED, f"by signal {-result.code} {result.last_line}")
    return Outcome(REFUSED if named else UNNAMED, result.error_line)


def new_lines(output, usual):
    """Returns the lines of an output that an undisturbed run does not print; numbers may differ."""

    def plain(line):
        return re.sub(r"[\d.]+", "0", line)

    known = {plain(line) for line in usual.splitlines()}
    return "\n".join(line for line in output.splitlines() if plain(line) not in known)


def table(outcomes):
    """Sets counts as Markdown.

    Args:
      outcomes: part -> name of the case -> `Outcome`.

    Returns:
      The table's text: a line for each part.
    """
    lines = [f"| part | cases | {' | '.join(KINDS)} |", "| --- |" + " ---: |" * (len(KINDS) + 1)]
    for part, cases in outcomes.items():
        kinds = [outcome.kind for outcome in cases.values()]
        lines.append(f"| {part} | {len(cases)} | {' | '.join(str(kinds.count(kind)) for kind in KINDS)} |")
    return "\n".join(lines)
