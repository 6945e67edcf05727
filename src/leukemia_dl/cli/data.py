"""`leukemia-dl audit | download | verify | predict | demo | preview`: files of a data set, and nets on image files."""

import contextlib
import signal
import sys
import webbrowser
from pathlib import Path
from typing import Literal

import typer
from typer import Argument, Option

from leukemia_dl.checks import choice
from leukemia_dl.cli import options
from leukemia_dl.errors import SettingsError

_EPOCHS = 8


def audit(
    root: Path = Argument(help="Folder (or CSV file) of the data set.", show_default=False),
    dataset: options.DatasetName = "folder",
    dataset_option: options.DatasetOptions = None,
    drop_class: options.DropClasses = None,
    csv: Path | None = Option(None, help="Write all findings to this file.", show_default=False),
    safe_csv: options.SafeCsv = False,
) -> None:
    """Look for damaged, odd, blank, identical and doubled images, and counts that differ.

    The exit status is 0 without errors, 1 with some.
    """
    from leukemia_dl.datasets.audit import audit as audit_dataset

    data = options.load_dataset(dataset, root, dataset_option, drop_class)
    typer.echo(f"{data!r}, read as --dataset {dataset}")
    report = audit_dataset(data)
    typer.echo(str(report))
    if csv is not None:
        options.write_csv(report.findings, csv, safe_csv)
        typer.echo(f"Findings: {csv}")
    raise typer.Exit(int(not report.ok))


def download(
    name: str = Argument(help="Data set, such as c_nmc_2019.", show_default=False),
    to: Path = Option(help="New or empty folder; after an interruption the same one."),
) -> None:
    """Fetch a data set from Kaggle, unless it is there already, and check it."""
    from leukemia_dl.datasets import get_source
    from leukemia_dl.datasets.registry import download as fetch

    info = get_source(name).info
    typer.echo(f"{info.title}\nLicence: {info.licence}\nCite: {info.citation}")
    data = fetch(name, to)
    typer.echo(f"{len(data):,} images of {data.table['subject'].nunique():,} subjects in {to}, as declared.")


def verify(
    root: Path = Argument(help="Folder of the data set.", show_default=False),
    manifest: Path = Option(help="List of SHA-256 and paths, as sha256sum writes it."),
    partial: bool = Option(False, "--partial", help="Only some of the files need to be there."),
) -> None:
    """Compare the files of a data set with a list of hashes; exit status 1 if any differs."""
    from leukemia_dl.datasets.verify import verify as compare

    report = compare(root, manifest, partial=partial)
    typer.echo(str(report))
    raise typer.Exit(int(not report.ok))


def predict(
    model: str = Argument(help="A model.keras, the folder of a trial, an exported net, or hf://OWNER/NAME."),
    images: list[Path] = Argument(help="Image files; a folder stands for the images in it and below."),
    output: Path | None = Option(None, help="A CSV file to write.", show_default=False),
    safe_csv: options.SafeCsv = False,
    uncalibrated: bool = Option(False, "--uncalibrated", help="Leave out the temperature that calibrates."),
    tta: bool = Option(False, "--tta", help="Average over each image turned and mirrored: eight times the work."),
    abstain: bool = Option(False, "--abstain", help="Say unsure where several classes, or none, are possible."),
    device: options.DeviceName = "auto",
) -> None:
    """Predict the class of images, with a probability per class. CSV on standard output when that is no terminal.

    The exit status is 1 if a file cannot be read; the column error says why. For research use only: nothing here is a
    diagnosis.
    """
    from leukemia_dl.models.exported import is_exported
    from leukemia_dl.models.reading import read_classifier

    if not is_exported(Path(model).expanduser()):  # which needs no Keras
        from leukemia_dl.training.backends import ComputeConfig, prepare

        prepare(compute=ComputeConfig(device))
    frame = read_classifier(model).predict(images, calibrated=not uncalibrated, tta=tta, abstain=abstain)
    if output is None and sys.stdout.isatty():
        options.print_table(frame, {str(name): ".3f" for name in frame if str(name).startswith("probability_")})
    else:
        options.write_csv(frame, output, safe_csv)
    if output is not None:
        typer.echo(f"{len(frame):,} predictions written to {output}")
    raise typer.Exit(int((frame["error"] != "").any()))


def explain(
    model: str = Argument(help="A model.keras, the folder of a trial in a store, or hf://OWNER/NAME."),
    images: list[Path] = Argument(help="Image files, or folders of images."),
    method: Literal["gradcam", "integrated_gradients", "occlusion"] | None = Option(
        None, help="How maps are made.", show_default="gradcam, or occlusion of a net without feature maps"
    ),
    output: Path = Option(Path("explanation.png"), help="The picture to write."),
) -> None:
    """Draw the pixels that the predictions of images depend on, and print the checks of each map."""
    from leukemia_dl.models.reading import read_classifier
    from leukemia_dl.reporting import plot_explanations, plots

    found = read_classifier(model).explain(images, method)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(plots.image_of(plot_explanations(found, found.method.replace("_", " "))))
    options.print_table(found.checks, dict.fromkeys(found.checks.columns.drop(["path", "class"]), ".3f"))
    typer.echo(f"Picture: {output}. A map says where a prediction comes from, not whether it is right.")


def demo(
    model: str = Argument(help="A model.keras, the folder of a trial, an exported net, or hf://OWNER/NAME."),
    port: int = Option(7860, help="The first port to try; the next free one if it is taken.", min=1, max=65_535),
    no_browser: bool = Option(False, "--no-browser", help="Print the address only."),
) -> None:
    """Serve a page to this machine alone, until Ctrl-C, where a net answers images that are dropped on it.

    Images are deleted at the end, or after an hour. For research use only: nothing there is a diagnosis.
    """
    from leukemia_dl.models.reading import read_classifier
    from leukemia_dl.reporting.demo import serve

    def ready(address: str) -> None:
        typer.echo(f"The page: {address} (Ctrl-C ends it)")
        if not no_browser:
            webbrowser.open(address)

    for name in {"SIGTERM", "SIGHUP"} & {*dir(signal)}:  # images are deleted then too
        signal.signal(getattr(signal, name), signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        serve(read_classifier(model), ready, port, Path(model).name)


def export(
    model: str = Argument(help="A model.keras, the folder of a trial in a store, or hf://OWNER/NAME."),
    output: Path | None = Argument(None, help="A file .onnx, .xml (OpenVINO) or .tflite, or a folder for SavedModel."),
    to: str | None = Option(None, help="onnx, openvino, litert or saved_model.", show_default="by OUTPUT, or onnx"),
) -> None:
    """Write a trained net for programs without Keras, and compare its probabilities with the original's."""
    from leukemia_dl.models.exported import FORMS, settings_file
    from leukemia_dl.models.reading import read_classifier

    if output is None:  # in this folder, since that of a store holds records only
        to = choice("to", to or "onnx", list(FORMS))
        output = Path(Path(model).name.removesuffix(".keras") + FORMS[to][0])
    written = read_classifier(model).export(output, to)
    typer.echo(f"Exported: {written}\nSettings: {settings_file(written)}")
    typer.echo(f"Predict:  leukemia-dl predict {written} IMAGES")


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
    images: int = Option(6, help="Number of images, drawn at random.", min=1, max=100),
    output: Path = Option("preview.png", help="The PNG to write."),
) -> None:
    """Draw a contact sheet: images as in their files, preprocessed, and in eight epochs of augmentation."""
    from leukemia_dl.identity import generator
    from leukemia_dl.reporting import plot_samples
    from leukemia_dl.training.augmentation import augment_images
    from leukemia_dl.training.backends import prepare

    settings = options.recipe(recipe, set_, image_size)
    if settings.image_size == "native":
        raise SettingsError("A preview is of one size: say --image-size, such as --image-size 224.")
    data = options.load_dataset(dataset, root, dataset_option, drop_class)
    chosen = data.subset(generator(0, "preview").permutation((data.labels >= 0).nonzero()[0])[:images])
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
    output.parent.mkdir(parents=True, exist_ok=True)
    plot_samples(cells, names, columns=_EPOCHS + 2, title=title).savefig(output, format="png")
    typer.echo(f"Images: {len(chosen)}, in their files, preprocessed and augmented: {output}")
