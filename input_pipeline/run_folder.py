"""Where everything lies in a run's folder, the one place that says so.

config.json                 settings of the newest call
lock                        who is at work in the folder
world/  own_video/          generated videos; frames that are kept of one's own
data/  flow/DOMAIN/         prepared sets, estimated flow
compilation_cache/          compiled programs
ROW/checkpoints/STEP/       one row of the results table: its checkpoints,
ROW/metrics.jsonl           its log,
ROW/evaluation.json         its scores
analysis/                   networks side by side in feature space
select.json                 which row --mode=select chose, and why
to_label/                   frames to be labelled, classes.json, and masks
report.{json,md,html}  frames/  video.mp4
"""

from pathlib import Path

CONFIG = "config.json"
LOCK = "lock"
WORLD = "world"
DATA = "data"
FLOW = "flow"
OWN_VIDEO = "own_video"
OWN_NETWORK = "own_network"  # weights of a network that was given from Python; no row
COMPILATION_CACHE = "compilation_cache"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
ANALYSIS = "analysis"
ANALYSIS_RESULTS = "analysis.json"
ANALYSIS_TEXT = "analysis.md"
ANALYSIS_FILES = "files.json"
SELECTION = "select.json"
TO_LABEL = "to_label"
REPORT_NUMBERS = "report.json"
REPORT_TEXT = "report.md"
REPORT_PAGE = "report.html"
FRAMES = "frames"
VIDEO = "video.mp4"


def checkpoints(workdir, row):
    """Returns the folder of a row's checkpoints."""
    return Path(workdir) / row / CHECKPOINTS


def evaluation(workdir, row):
    """Returns the file with a row's scores."""
    return Path(workdir) / row / EVALUATION


def metrics(workdir, row):
    """Returns the file with what a row logged, a line of JSON a step."""
    return Path(workdir) / row / METRICS


def own_video(workdir):
    """Returns the folder of the frames that are kept of somebody's own videos."""
    return Path(workdir) / OWN_VIDEO


def flow(workdir, domain):
    """Returns the folder of a domain's flow files that the run itself estimates."""
    return Path(workdir) / FLOW / domain


def prepared(config, workdir):
    """Returns the folder of prepared sets: `config.data.prepared_dir`, or else the run's own."""
    return Path(config.data.prepared_dir or Path(workdir) / DATA)


def rows(workdir):
    """Lists the rows that a run's folder holds checkpoints or scores of, sorted."""
    folders = Path(workdir).iterdir() if Path(workdir).is_dir() else ()
    there = (f.name for f in folders if (f / CHECKPOINTS).is_dir() or (f / EVALUATION).is_file())
    return sorted(name for name in there if name != OWN_NETWORK)
