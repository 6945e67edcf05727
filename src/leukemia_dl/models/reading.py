"""Read a trained net from a file. Of an untrusted one, sizes are bounded before anything is unpacked or built."""

import json
import re
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from leukemia_dl.errors import DataError, UnknownNameError
from leukemia_dl.models.backbones import encoder_identity, get_backbone
from leukemia_dl.models.build import silence_startup, with_logits
from leukemia_dl.models.classifier import SETTINGS_MEMBER, Classifier
from leukemia_dl.models.encoders import EncoderSpec, load_encoder
from leukemia_dl.models.exported import FORMAT, is_exported, read_exported
from leukemia_dl.models.hub import fetch
from leukemia_dl.models.untrusted import check_net
from leukemia_dl.plugins import DISTRIBUTION
from leukemia_dl.preprocess import Pipeline

_OUTSIDE = re.compile(r"^[/\\]|\.\.|:")
_WEIGHTS, _MAX_TEXT = "model.weights.h5", 8 << 20  # bytes of any other member; the largest nets of Keras have 2 MB


def read_classifier(path: str | Path) -> Classifier:
    """Return the classifier in a `.keras` file, whose net Keras loads with `safe_mode=True`, or of an exported net.

    Args:
        path: What `Classifier.save` or `export` wrote, the folder of a trial or of a store that holds exactly one, or
            "hf://owner/name" of what `push_to_hub` uploaded, with "@revision" for another one than the newest.

    Raises:
        DataError: If there is none, several, or the file is damaged or from elsewhere.
        UnknownNameError: If it was trained with a preprocessing step whose module is not imported.
        BackendError: If Keras has no backend here.
    """
    path = fetch(path) if isinstance(path, str) and path.startswith("hf://") else path
    if is_exported(path := Path(path).expanduser()):
        return Classifier(*read_exported(path))
    with silence_startup():
        import keras

        keras.ops.zeros(())  # TensorFlow looks for devices when it needs one first
    file = _model_file(path)
    hint = ""
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():  # Keras does not compress the weights
                if _OUTSIDE.search(member.filename):
                    raise ValueError(f"{member.filename} in it leads out of the file")
                if member.file_size > (file.stat().st_size if member.filename == _WEIGHTS else _MAX_TEXT):
                    raise ValueError(f"{member.filename} in it has an implausible size")
            settings = json.loads(archive.read(SETTINGS_MEMBER))
        if settings["format"] not in (1, 2, FORMAT):
            raise ValueError(f"format {settings['format']!r} is unknown to this version: update leukemia-dl.")
        class_names = tuple(map(str, settings["class_names"]))
        pipeline, provenance = Pipeline.from_dict(settings["pipeline"]), dict(settings["provenance"])
        trial = dict(provenance.get("trial", {}))
        encoder = _encoder_of(settings)
        if encoder is None and (plugin := trial.get("plugin") or DISTRIBUTION) != DISTRIBUTION:
            name = str(trial.get("backbone"))
            hint = f"Its backbone {name!r} is of {plugin} {trial.get('plugin_version')}, which has to be there."
            try:  # importing and building it registers its layers with Keras, inside nested models too
                spec: Any = get_backbone(name)
                spec.build(keras.Input((spec.min_size, spec.min_size, 3)), None)
            except Exception as error:  # the net may load without
                hint += f" Building it raised {type(error).__name__}: {error}"
        with ThreadPoolExecutor(1) as pool:  # StatelessScope leaves state behind in its thread, which ends
            pool.submit(check_net, file).result()
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
        model = with_logits(model) if settings["format"] == FORMAT else model
        if encoder is not None:
            model = replace(load_encoder(encoder), head=model)
        return Classifier(model, class_names, pipeline, provenance, settings.get("temperature", 1.0))
    except UnknownNameError:
        raise
    except Exception as error:
        # Keras puts the configuration of the whole net before and behind the reason.
        text = str(error).split("Exception encountered: ")[-1].partition(" Full object config")[0]
        reason = f"{type(error).__name__}: {text}"
        raise DataError(f"{file} is damaged or was not saved by leukemia_dl ({reason}). {hint}".strip()) from error


def _encoder_of(settings: Mapping[str, Any]) -> EncoderSpec | None:
    if not (saved := settings.get("encoder")):
        return None
    spec = get_backbone(saved["name"])
    found = encoder_identity(spec) if isinstance(spec, EncoderSpec) else "a Keras net"
    if not isinstance(spec, EncoderSpec) or found != saved["identity"]:
        raise ValueError(f"it is for the encoder {saved['name']} ({saved['identity']}); the one here is {found}")
    return spec


def _model_file(path: Path) -> Path:
    places = [path, path / "model.keras", *sorted(path.glob("trials/[!.]*/model.keras"))]
    found = [place for place in places if place.is_file()]
    if len(found) != 1:
        names = "".join(f"\n  {file.parent}" for file in found)
        raise DataError(
            f"There {'are several models' if found else 'is no model'} at {path}. Pass a .keras file or the folder of "
            f"a trial, such as bench.store.root / 'trials' / row.trial. Trials of embeddings save no model.{names}"
        )
    return found[0]
