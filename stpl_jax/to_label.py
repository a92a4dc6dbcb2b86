"""Held-out frames that are worth labelling, written for a person; and the masks that come back.

<workdir>/to_label/frames/NAME.png  x_t of a held-out clip
<workdir>/to_label/classes.json     the model's classes
<workdir>/to_label/labels/NAME.png  masks, made by a person; see `input_pipeline.own_labels`
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from input_pipeline import images, own_labels, run_folder
from input_pipeline.clips import read_clip
from input_pipeline.domains import open_domain
from input_pipeline.errors import UserError
from stpl_jax import predict
from stpl_jax.unlabelled import compare
from stpl_jax.video import write_image

# So many clips are looked at for each frame that is wanted.
_LOOKED_AT = 4


@dataclasses.dataclass(frozen=True)
class Masks:
    """What a person labelled.

    Attributes:
      own: `OwnClasses` of the classes.json beside the masks.
      masks: {index of the clip: `[H, W]` uint8 indices into `own.classes`, 255 is ignored}.
      digest: text that changes with masks and classes.
    """

    own: own_labels.OwnClasses
    masks: dict[int, np.ndarray]
    digest: str


def write_frames(config, workdir, rows, progress=print):
    """Writes `config.label.count` frames of held-out clips, spread over the set, where the rows disagree most.

    Frames that have a mask already stay and count; those without one that an earlier call has written are replaced.
    Those that the material came with a mask of are not chosen. With one row there is nothing to disagree about: frames
    are spread, and that is all.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      rows: row -> path for `checkpoint.load_model`.
      progress: called with lines of text.

    Raises:
      UserError: the set has labels.
    """
    source = open_domain(config, workdir, "val", progress=progress)
    if source.spec.classes is not None:
        raise UserError(
            f"{source.spec.name} ({source.spec.split}) has labels already: --mode=choose_frames is for data sets "
            "without."
        )
    folder = Path(workdir) / run_folder.TO_LABEL
    masks, given = own_labels.find_masks(folder), own_labels.find_masks(run_folder.own_video(workdir))
    models = {}
    for row, path in rows.items():
        # As it was scored: a source model that was given may come from another size.
        models[row] = dataclasses.replace(predict.load(path, tell=progress), size=source.spec.size)
    wanted = max(0, config.label.count - len(masks))
    found = compare(models, source, max(1, _LOOKED_AT * config.label.count))
    chosen = [i for i in found.most_differing(config.label.count) if found.names[i] not in masks | given]
    differing = found.differing()
    if len(chosen) > wanted:
        # Parts of the set of which a frame is labelled already have one of their own among these, too.
        chosen = sorted(sorted(chosen, key=lambda i: -differing[i])[:wanted])
    for file in (folder / own_labels.FRAMES).glob("*.png"):
        if file.stem not in masks:
            file.unlink()
    for i in chosen:
        frame = read_clip(source, found.clips[i], (0,), (), label=False)["frames"][0]
        write_image(folder / own_labels.FRAMES / f"{found.names[i]}.png", frame)
    model = next(iter(models.values()))
    classes = folder / own_labels.CLASSES_FILE
    if not masks or not classes.is_file():
        own_labels.write_classes(classes, model.classes, model.palette)
    line = f"choose_frames  {len(chosen)} frames in {folder / own_labels.FRAMES}"
    if masks or given:
        line += f", beside {len(masks | given)} that have masks"
    if len(models) > 1 and chosen:
        line += f"; {', '.join(models)} differ in {100 * differing[chosen].mean():.1f}% of their pixels"
    progress(line)
    progress(
        f"choose_frames  put masks of the same names into {folder / own_labels.LABELS}, 8-bit ids or the colours of "
        f"{own_labels.CLASSES_FILE}; --mode=evaluate then gives mIoU on them"
    )


def read_masks(workdir, source, model_classes):
    """Reads the masks that a person has put beside the frames of `write_frames`, and those that the material came with.

    Classes of both are one list, by name. Of a clip that both have a mask of, the former is taken.

    Args:
      workdir: the run's folder.
      source: `ClipSource` of the held-out clips.
      model_classes: names of the classes that are predicted; pixels of any other are ignored.

    Returns:
      `Masks` at the size of the frames, or None where there are none.

    Raises:
      UserError: a mask that is of no held-out clip, or of other pixels than that has now; or that cannot be read, see
        `own_labels`; or nothing is labelled in any of them.
    """
    files = {}
    for folder in (run_folder.own_video(workdir), Path(workdir) / run_folder.TO_LABEL):
        files |= {name: (folder, file) for name, file in own_labels.find_masks(folder).items()}
    if not files:
        return None
    owns = {folder: own_labels.read_classes(folder / own_labels.CLASSES_FILE) for folder, _ in files.values()}
    own = _one_list(list(owns.values()))
    tables = {folder: _table(part, own, model_classes) for folder, part in owns.items()}
    places, masks = {source[i]["name"].decode(): i for i in range(len(source))}, {}
    for name, (folder, file) in files.items():
        frame = folder / own_labels.FRAMES / f"{name}.png"
        if name not in places or not _shows(frame, source, places[name]):
            raise UserError(
                f"{file}: expected a mask of a held-out frame, and {source.path} has "
                + ("no clip of that name" if name not in places else f"another picture of that name than {frame}")
                + ". Take it away, or name it like the frame that it labels."
            )
        masks[places[name]] = tables[folder][own_labels.read_mask(file, owns[folder], source.spec.size)]
    if all((mask == own_labels.IGNORED).all() for mask in masks.values()):
        raise UserError(
            f"{', '.join(str(folder / own_labels.LABELS) for folder in owns)}: no pixel of a class in {len(masks)} "
            "masks that the model knows, too: all are ignored."
        )
    digest = hashlib.sha256(repr((own.names, sorted(masks))).encode())
    for i in sorted(masks):
        digest.update(masks[i].tobytes())
    return Masks(own, masks, digest.hexdigest())


def _one_list(owns):
    """`OwnClasses` that have all names of several; one alone stays as it is."""
    if len(owns) == 1:
        return owns[0]
    names = dict.fromkeys(name for own in owns for name in own.classes)
    return own_labels.OwnClasses(owns[-1].path, dict(enumerate(names)), {})


def _table(part, own, model_classes):
    """`[256]` uint8: places in `own.classes` of `part`'s classes; those that the model does not know are ignored."""
    table = np.full(256, own_labels.IGNORED, np.uint8)
    for i in np.flatnonzero(part.known_to(model_classes)):
        table[i] = own.classes.index(part.classes[i])
    return table


def _shows(frame, source, i):
    """Whether a frame that was written is what the set holds now; where it is gone, nobody can tell."""
    if not frame.is_file():
        return True
    return np.array_equal(images.read_image(frame), read_clip(source, i, (0,), (), label=False)["frames"][0])
