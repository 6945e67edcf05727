"""`leukemia-dl predict`: a trained model on image files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from leukemia_dl.cli import options

__all__ = ["predict"]


def predict(
    model: Annotated[Path, typer.Argument(help="A model.keras, or the folder of a trial in a store.")],
    images: Annotated[list[Path], typer.Argument(help="Image files; a folder stands for the images in it and below.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Write a CSV file instead of the screen.", show_default=False, callback=options.in_folder),
    ] = None,
    safe_csv: options.SafeCsv = False,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 32,
    uncalibrated: Annotated[
        bool, typer.Option("--uncalibrated", help="Leave out the temperature that calibrates probabilities.")
    ] = False,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average over each image turned and mirrored: eight times the work.")
    ] = False,
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
    if output is not None:
        options.write_csv(frame, output, safe_csv)
        typer.echo(f"{len(frame):,} predictions written to {output}")
    elif sys.stdout.isatty():
        options.print_table(frame, {str(name): ".3f" for name in frame if str(name).startswith("probability_")})
    else:
        options.write_csv(frame, safe=safe_csv)
    if (frame["error"] != "").any():
        raise typer.Exit(1)
