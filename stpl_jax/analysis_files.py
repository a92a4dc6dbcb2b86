"""The files of an analysis: read only where they hold all that a page is drawn from."""

import re
from pathlib import Path

from input_pipeline import run_folder
from input_pipeline.errors import UserError
from input_pipeline.files import read_json
from input_pipeline.json_form import NUMBER, NUMBER_OR_NULL, OBJECT, TEXT, WHOLE, Each, Leaf, misfit
from input_pipeline.labels import PALETTE

_COUNT = Leaf("a whole number above 0", lambda value: WHOLE.fits(value) and value > 0)
_CLASS = Leaf("the name of a class", lambda value: isinstance(value, str) and value in PALETTE)
# It goes into a page as it is.
_URI = re.compile(r"data:image/(png|webp);base64,[A-Za-z0-9+/]+=*")
_IMAGE = Leaf("an image as a data URI", lambda value: isinstance(value, str) and bool(_URI.fullmatch(value)))

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
    "pictures": Each(TEXT),
}
_DRAWINGS = {"tsne": Each({"classes": [WHOLE], "places": Each([[NUMBER]])}), "maps": [Each(_IMAGE)]}


def read_results(workdir, progress=print):
    """Reads `analysis.json`; None where there is none, or, which is said, where it is damaged: it can be made anew."""
    return _read(workdir, run_folder.ANALYSIS_RESULTS, _results_misfit, progress)


def read_drawings(workdir, results, progress=print):
    """Reads `drawings.json`, what a page needs to draw t-SNE and feature maps by itself.

    Returns:
      dict of `tsne` (subset -> `classes`, a train id for each point, and `places`, name -> [[x, y], ...], 0 to 1000)
      and `maps` (for each clip caption -> data URI: frame, label, each network's features). None as `read_results`, and
      where it does not belong to these results.
    """
    return _read(workdir, run_folder.DRAWINGS, lambda found: _drawings_misfit(found, results), progress)


def _read(workdir, name, misfit, progress):
    file = Path(workdir) / run_folder.ANALYSIS / name
    remedy = "It is taken as absent; --mode=analyse writes it anew."
    try:
        found = read_json(file, remedy)
        wrong = None if found is None else misfit(found)
        if wrong:
            raise UserError(f"{file}: expected what --mode=analyse writes, found something else ({wrong}). {remedy}")
        return found
    except UserError as error:
        progress(f"analysis  {error}")
        return None


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
    return None


def _drawings_misfit(found, results):
    """Returns what is wrong with the content of `drawings.json` beside these results, or None."""
    wrong = misfit(found, _DRAWINGS)
    if wrong:
        return wrong
    if found["tsne"].keys() != results["subsets"].keys():
        return f".tsne: expected {', '.join(results['subsets'])}"
    for subset, layout in found["tsne"].items():
        if not layout["places"].keys() <= results["checkpoints"].keys():
            return f".tsne.{subset}.places: expected {', '.join(results['checkpoints'])}"
        for name, places in layout["places"].items():
            if len(places) != len(layout["classes"]) or any(len(place) != 2 for place in places):
                return f".tsne.{subset}.places.{name}: expected {len(layout['classes'])} points in a plane"
    return None
