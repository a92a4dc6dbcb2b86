"""The files of an analysis: read only where they hold all that a page shows."""

import hashlib
import re
from pathlib import Path

from input_pipeline import run_folder
from input_pipeline.errors import UserError
from input_pipeline.files import read_json
from input_pipeline.json_form import NUMBER_OR_NULL, OBJECT, TEXT, WHOLE, Each, Leaf, misfit
from input_pipeline.labels import PALETTE

_COUNT = Leaf("a whole number above 0", lambda value: WHOLE.fits(value) and value > 0)
_CLASS = Leaf("the name of a class", lambda value: isinstance(value, str) and value in PALETTE)
_NAME = re.compile(r"[a-z0-9_]+\.(png|webp|svg)")
_PICTURE = Leaf("the name of a picture", lambda value: isinstance(value, str) and bool(_NAME.fullmatch(value)))

_RESULTS = {
    "checkpoints": Each(
        {
            "path": TEXT,
            "fingerprint": TEXT,
            "variances": Each({"intra": NUMBER_OR_NULL, "inter": NUMBER_OR_NULL}),
            "same_class_share": [NUMBER_OR_NULL],
        }
    ),
    "neighbours": [_COUNT],
    "pixels": Each(WHOLE),
    "clips": WHOLE,
    "subsets": Each([_CLASS]),
    "settings": OBJECT,
    "seed": WHOLE,
    "pictures": {"knn": _PICTURE, "tsne": Each(Each(_PICTURE)), "maps": [Each(_PICTURE)]},
    "digests": Each(TEXT),
}
_REMEDY = "The analysis is taken as absent; --mode=analyse writes it anew."


def digest(content):
    """Returns a short text that is another one for other bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def read_results(workdir, progress=print):
    """Reads `analysis.json` and the pictures that it names.

    Args:
      workdir: the run's folder.
      progress: told where any of them is damaged or missing.

    Returns:
      What `analysis.analyse` wrote, its `pictures` as bytes in the place of file names; None where there is none, or
      where it is not whole: it can be made anew.
    """
    folder = Path(workdir) / run_folder.ANALYSIS
    file = folder / run_folder.ANALYSIS_RESULTS
    try:
        found = read_json(file, _REMEDY)
        wrong = None if found is None else _results_misfit(found)
        if wrong:
            raise UserError(f"{file}: expected what --mode=analyse writes, found something else ({wrong}). {_REMEDY}")
        return found and found | {"pictures": _contents(folder, found["pictures"], found["digests"])}
    except UserError as error:
        progress(f"analysis  {error}")
        return None


def _contents(folder, names, digests):
    """Puts pictures into the place of their names, in dicts and lists."""
    if isinstance(names, dict):
        return {key: _contents(folder, value, digests) for key, value in names.items()}
    if isinstance(names, list):
        return [_contents(folder, value, digests) for value in names]
    path = folder / names
    content = path.read_bytes() if path.is_file() else None
    if content is None or digest(content) != digests.get(names):
        what = "other bytes" if content else "none"
        raise UserError(f"{path}: expected the picture that --mode=analyse drew, found {what}. {_REMEDY}")
    return content


def _results_misfit(found):
    """Returns what is wrong with the content of `analysis.json`, or None."""
    wrong = misfit(found, _RESULTS)
    if wrong:
        return wrong
    for name, entry in found["checkpoints"].items():
        if len(entry["same_class_share"]) != len(found["neighbours"]):
            return f".checkpoints.{name}.same_class_share: expected {len(found['neighbours'])} numbers"
        if entry["variances"].keys() != found["subsets"].keys():
            return f".checkpoints.{name}.variances: expected {', '.join(found['subsets'])}"
    tsne = found["pictures"]["tsne"]
    if tsne.keys() != found["subsets"].keys() or any(x.keys() != found["checkpoints"].keys() for x in tsne.values()):
        return ".pictures.tsne: expected one of each network for each of the subsets"
    return None
