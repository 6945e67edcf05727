"""`leukemia-dl predict | preview`: a trained model on image files, and the images that a benchmark would train on."""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from typer import Argument, Option

from leukemia_dl.cli import options
from leukemia_dl.errors import SettingsError

__all__ = ["predict", "preview"]

_EPOCHS = 8


def predict(
    model: Path = Argument(help="A model.keras, or the folder of a trial in a store."),
    images: list[Path] = Argument(help="Image files; a folder stands for the images in it and below."),
    output: Path | None = Option(None, help="A CSV file to write.", show_default=False, callback=options.in_folder),
    safe_csv: options.SafeCsv = False,
    batch_size: int = Option(32, help="Images per step."),
    uncalibrated: bool = Option(False, "--uncalibrated", help="Leave out the temperature that calibrates."),
    tta: bool = Option(False, "--tta", help="Average over each image turned and mirrored: eight times the work."),
    device: options.DeviceName = "auto",
) -> None:
    """Predict the class of images, with a probability per class. CSV on standard output when that is no terminal.

    The exit status is 1 if a file cannot be read; the column error says why. For research use only: nothing here is a
    diagnosis.
    """
    from leukemia_dl.models.classifier import load_classifier
    from leukemia_dl.training.backends import ComputeConfig, prepare

    prepare(compute=ComputeConfig(device))
    frame = load_classifier(model).predict(images, batch_size=batch_size, calibrated=not uncalibrated, tta=tta)
    if output is None and sys.stdout.isatty():
        options.print_table(frame, {str(name): ".3f" for name in frame if str(name).startswith("probability_")})
    else:
        options.write_csv(frame, output, safe_csv)
    if output is not None:
        typer.echo(f"{len(frame):,} predictions written to {output}")
    if (frame["error"] != "").any():
        raise typer.Exit(1)


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
    images: int = Option(6, help="Number of images, shared among the classes.", min=1, max=100),
    output: Path = Option("preview.png", help="The PNG to write.", callback=options.in_folder),
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
    epochs = [augment_images(pixels, settings, epoch=epoch) for epoch in range(_EPOCHS)]
    cells, names = [], []
    for row in range(len(chosen)):
        cells += [chosen.decode(row), pixels[row], *(epoch[row] for epoch in epochs)]
        label = data.class_names[chosen.labels[row]]
        names += [f"{label}: file", "preprocessed", *(f"epoch {epoch + 1}" for epoch in range(_EPOCHS))]
    title = f"{data.info.title}{' (synthetic cells, not real ones)' if data.info.synthetic else ''}"
    plot_samples(cells, names, columns=_EPOCHS + 2, title=title).savefig(output, format="png")
    note = ", normalised to the stain of these images" if stain else ""
    typer.echo(f"Images: {len(chosen)}, preprocessed{note}, and {_EPOCHS} epochs of augmentation: {output}")
