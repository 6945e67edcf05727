"""Trained nets on the Hugging Face Hub: one commit with a net and its card, and its download by `hf://owner/name`."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leukemia_dl.checks import import_extra
from leukemia_dl.errors import DataError, LeukemiaDLError, SettingsError

_MODEL, _MOST_BYTES = "model.keras", 4 << 30
_ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_FACTS, _, _CARD = Path(__file__).with_name("hub_card.md").read_text("utf-8").partition("\n\n")


def push(classifier: Any, repo: str, card: str | None, private: bool, token: str | None, message: str) -> str:
    """Upload a classifier, see `Classifier.push_to_hub`."""
    text = _card_of(classifier, repo) if card is None else card
    text = text if text.startswith("---") else f"{_FACTS}\n\n{text}"
    with tempfile.TemporaryDirectory() as folder, _hub(f"{repo} cannot be written", token) as hub:
        model = classifier.save(Path(folder) / _MODEL)
        api = hub.HfApi(token=token)
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise SettingsError(f"{repo} is there and public: pass private=False, or another name.")
        files = [hub.CommitOperationAdd(_MODEL, str(model)), hub.CommitOperationAdd("README.md", text.encode())]
        return str(api.create_commit(repo, files, commit_message=message).commit_url)


def fetch(address: str) -> Path:
    """Return the file of the net at `hf://owner/name`, or `hf://owner/name@revision`, from the hub or its cache.

    Raises SettingsError for another address, DataError if the hub has no such net or cannot be reached.
    """
    if not (found := _ADDRESS.fullmatch(address)):
        raise SettingsError(f"A net on the hub is hf://owner/name or hf://owner/name@revision. Received: {address!r}.")
    repo, revision = found["repo"], found["revision"]
    with _hub(f"{address} cannot be read", None) as hub:
        try:
            size = hub.get_hf_file_metadata(hub.hf_hub_url(repo, _MODEL, revision=revision)).size or 0
        except hub.errors.OfflineModeIsEnabled:  # the cache answers, or says that it has none
            size = 0
        if size > _MOST_BYTES:
            raise DataError(f"{address} has {size:,} bytes, more than {_MOST_BYTES:,}: it was not downloaded.")
        return Path(hub.hf_hub_download(repo, _MODEL, revision=revision))


@contextmanager
def _hub(what: str, token: str | None) -> Iterator[Any]:
    """Import huggingface_hub, whose errors become one of ours."""
    huggingface_hub = import_extra("huggingface_hub", "hub")
    try:
        yield huggingface_hub
    except LeukemiaDLError:
        raise
    except huggingface_hub.errors.HFValidationError as error:
        raise SettingsError(f"{what}: {error}") from None
    except Exception as error:  # of the hub's client, of its transport and of the file system
        text = " ".join(str(error).split()) or type(error).__name__
        for secret in filter(None, (token, huggingface_hub.get_token())):
            text = text.replace(secret.strip(), "...")
        hint = "Look at the name, and log in by `hf auth login` if it is private or yours to write"
        raise DataError(f"{what}: {text} ({hint}.)") from None  # the cause may hold the token


def _card_of(classifier: Any, repo: str) -> str:
    origin, names = classifier.provenance, classifier.class_names
    counts = origin.get("training_images") or {}
    images = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
    rule, threshold = origin.get("threshold") or {}, "none"
    if rule.get("value") is not None:
        threshold = f"{rule['value']:.4g} on {names[-1]}, for a sensitivity of {rule['sensitivity']:g} on val"
    return _CARD.format(
        title=repo.split("/")[-1], repo=repo, classes=", ".join(names), size=classifier.model.input_shape[1],
        data=f"{origin.get('dataset', 'unknown data')}{f' ({images})' * bool(images)}"
        + ", synthetic cells, not real ones" * bool(origin.get("synthetic")),
        citation=origin.get("citation") or "unknown", temperature=classifier.temperature,
        threshold=threshold,
    )  # fmt: skip
