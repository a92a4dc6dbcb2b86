"""What a folder of kept frames says of itself: `manifest.json` beside `frames/` and `film/`."""

from pathlib import Path

from input_pipeline.files import read_json

MANIFEST, FRAMES, FILM = "manifest.json", "frames", "film"
_KEYS = ("made_from", "settings", "frames", "clips", "size", "film_rate")


def read_manifest(raw_dir):
    """Reads what a folder of kept frames says of itself.

    Args:
      raw_dir: of `IngestedVideo`.

    Returns:
      dict of `made_from` {file: [bytes, time]}, `settings`, `size`, `frames` {file: bytes}, `clips` {split: list of
      dicts of `name` and `frames`, newest first} and `film_rate`; None where there is no such file.

    Raises:
      UserError: the file is damaged.
    """
    return read_json(Path(raw_dir) / MANIFEST, f"Delete {raw_dir}: the next run makes it again.", _KEYS)
