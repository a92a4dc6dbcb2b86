"""The run that is disturbed, and the undisturbed one that it is compared with."""

import json
import random
import shutil
from pathlib import Path

from benchmarks import measure
from benchmarks.faults import results
from benchmarks.faults.product import CONFIG, Forks, Started
from input_pipeline import run_folder

# A run takes a minute; what has not ended after so long does not end.
TIMEOUT = 900
# What the end of a run leaves, beside its rows.
REPORT = ("report.json", "report.md", "report.html", "frames", "video.mp4", "analysis")


class Bench:
    """A folder for the campaign.

    Attributes:
      workdir: of the campaign.
      run: where runs are disturbed. Always the same path: prepared sets know the folder that they were made from.
      reference: a copy of the undisturbed run.
      lines: what it printed with compiled programs at hand, (seconds since its start, text).
      forks: `Forks`.
    """

    def __init__(self, workdir, seed=0, progress=print):
        self.workdir, self.seed, self.progress = Path(workdir).absolute(), seed, progress
        self.run, self.reference = self.workdir / "run", self.workdir / "reference"
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.forks = Forks(self.workdir / "output.txt")
        self.lines = self._undisturbed()
        self._expected = {}

    def _undisturbed(self):
        note, commit = self.workdir / "reference.json", measure.commit()
        if note.is_file() and self.reference.is_dir():
            found = json.loads(note.read_text())
            if found["commit"] == commit and "+changes" not in commit:
                return found["lines"]
        self.progress("two undisturbed runs, to compare with")
        note.unlink(missing_ok=True)
        shutil.rmtree(self.reference, ignore_errors=True)
        self.clear()
        self._run_to_the_end()
        first = results.of_training(self.run)
        # The second one finds compiled programs, as those that are disturbed will: its phases take as long as theirs.
        for path in self.run.iterdir():
            if path.name != run_folder.COMPILATION_CACHE:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        lines = self._run_to_the_end()
        if differing := results.differing(first, results.of_training(self.run)):
            raise SystemExit(f"Two undisturbed runs end with different results: {', '.join(differing)}")
        shutil.copytree(self.run, self.reference, symlinks=True)
        note.write_text(json.dumps({"commit": commit, "lines": lines}))
        return lines

    def _run_to_the_end(self):
        started = Started(*self.flags())
        ended, _ = started.end(TIMEOUT)
        if ended.code:
            raise SystemExit(f"The undisturbed run failed:\n{ended.output}")
        return started.lines

    def flags(self, *more, mode="auto"):
        """Returns the flags of a command line in the folder that is disturbed."""
        return (f"--config={CONFIG}", f"--workdir={self.run}", f"--mode={mode}", *more)

    def random(self, name):
        """Returns the random numbers of a case: the same for the same name and seed."""
        return random.Random(f"{self.seed}/{name}")

    def clear(self):
        """Empties the folder that is disturbed; it may be a mounted one."""
        self.run.mkdir(exist_ok=True)
        for path in self.run.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def restore(self, leave_out=()):
        """Puts the undisturbed run's files into the folder that is disturbed, without those under some names.

        Args:
          leave_out: paths relative to the run, of files and folders.
        """
        self.clear()
        left_out = {str(self.reference / name) for name in leave_out}

        def ignored(folder, names):
            return [name for name in names if str(Path(folder) / name) in left_out]

        shutil.copytree(self.reference, self.run, symlinks=True, dirs_exist_ok=True, ignore=ignored)

    def restore_halfway(self):
        """As `restore`, as if adaptation had been killed before its last checkpoint."""
        steps = sorted((self.reference / "stpl" / run_folder.CHECKPOINTS).glob("[0-9]*"), key=lambda p: int(p.name))
        self.restore((steps[-1].relative_to(self.reference), f"stpl/{run_folder.EVALUATION}"))

    def video(self):
        """Returns a folder of frames to predict, which is never damaged."""
        return next((self.reference / run_folder.WORLD / "cityscapes_seq/leftImg8bit_sequence/demoVideo").iterdir())

    def expected(self, name, read):
        """Returns `read()` of the undisturbed state, read once."""
        if name not in self._expected:
            self._expected[name] = read()
        return self._expected[name]

    def trained(self):
        """Returns what training ends with when nothing disturbs it."""
        return self.expected("training", lambda: results.of_training(self.reference))
