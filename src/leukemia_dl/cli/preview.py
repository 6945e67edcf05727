"""`leukemia-dl preview`: the images that a benchmark would train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leukemia_dl.cli import options
from leukemia_dl.errors import SettingsError, StoreError

__all__ = ["preview"]

_AUGMENTED = 8


def preview(
    dataset: options.DatasetName = "synthetic",
    root: options.Root = None,
    dataset_option: options.DatasetOptions = None,
    drop_class: options.DropClasses = None,
    recipe: options.RecipeName = "quick",
    set_: options.Changes = None,
    image_size: options.ImageSize = None,
    stain: options.Stain = None,
    crop: options.Crop = False,
    images: Annotated[int, typer.Option(help="Number of images, shared among the classes.", min=1, max=100)] = 6,
    output: Annotated[Path, typer.Option(help="The picture to write, a PNG.", callback=options.in_folder)] = Path(
        "preview.png"
    ),
) -> None:
    """Draw a contact sheet: images as in their files, preprocessed, and in eight epochs of augmentation."""
    import numpy as np

    from leukemia_dl.identity import generator
    from leukemia_dl.reporting import plot_samples
    from leukemia_dl.training.augmentation import augment_images
    from leukemia_dl.training.backends import prepare

    settings = options.recipe(recipe, set_, image_size)
    if settings.image_size == "native":
        raise SettingsError("A preview is of one size: say --image-size, such as --image-size 224.")
    if output.suffix.lower() != ".png":
        raise SettingsError(f"--output must end in .png. Received: {output}.")
    data = options.load_dataset(dataset, root, dataset_option, drop_class)
    order = generator(0, "preview").permutation(len(data))
    labels = data.labels[order]
    of_class = [order[labels == code] for code in range(len(data.class_names))]
    # One of each class in turn, until there are enough.
    turns = [rows[turn] for turn in range(images) for rows in of_class if turn < len(rows)][:images]
    chosen = data.subset(np.array(turns))
    stored, fitted = options.pipeline(data, settings, settings.image_size, stain, crop).partition()
    pixels = chosen.to_numpy(stored, show_progress=False)
    pixels = fitted.fit(pixels)(pixels) if fitted.steps else pixels
    prepare()
    epochs = [augment_images(pixels, settings, epoch=epoch) for epoch in range(_AUGMENTED)]
    cells, names = [], []
    for row in range(len(chosen)):
        cells += [chosen.decode(row), pixels[row], *(epoch[row] for epoch in epochs)]
        label = data.class_names[chosen.labels[row]]
        names += [f"{label}: file", "preprocessed", *(f"epoch {epoch + 1}" for epoch in range(_AUGMENTED))]
    title = f"{data.info.title}{' (synthetic cells, not real ones)' if data.info.synthetic else ''}"
    try:
        plot_samples(cells, names, columns=_AUGMENTED + 2, title=title).savefig(output, format="png")
    except OSError as error:
        raise StoreError(f"{output} cannot be written: {error.strerror or error}.") from error
    note = ", normalised to the stain of these images" if stain else ""
    typer.echo(f"Images: {len(chosen)}, preprocessed{note}, and {_AUGMENTED} epochs of augmentation: {output}")
