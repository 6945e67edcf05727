"""A page on this machine, by gradio, where a trained net answers images; the browser asks no other host anything."""

import contextlib
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from leukemia_dl.checks import import_extra
from leukemia_dl.errors import SettingsError
from leukemia_dl.models import Classifier
from leukemia_dl.preprocess import decode_image
from leukemia_dl.reporting.render import one_line, overlays, page, rows_of, thumbnail

_MOST, _SIDE, _PORTS, _HOST = 32, 320, 100, "127.0.0.1"
_HEADERS = [("Content-Security-Policy", "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:")]


def answers_to(classifier: Classifier, files: list[Path]) -> Iterator[dict[str, Any]]:
    """Yield what the page shows of image files: first their predictions, with warnings and errors, then also maps."""
    how = {"abstain": True} if classifier.provenance.get("abstain", {}).get("value") is not None else {}
    images = list[dict[str, Any]]()
    for file in files[:_MOST]:
        with _warnings() as found:
            row = classifier.predict(file, show_progress=False, **how).iloc[0]  # alone, so that warnings are of it
        image = {**row, "name": file.name, "error": one_line(row["error"]), "warnings": found, "map": None}
        images.append(image | {"image": "" if row["error"] else thumbnail(decode_image(file), _SIDE)})
    facts = {"images": images, "left_out": len(files) - len(images), "notes": []}
    yield facts
    if readable := [image for image in images if not image["error"]]:
        with _warnings() as found:
            maps = classifier.explain([image["path"] for image in readable])
        for image, overlay, checks in zip(readable, overlays(maps), rows_of(maps.checks), strict=True):
            image["map"] = {**checks, "image": thumbnail(overlay, _SIDE), "method": maps.method}
        yield facts | {"notes": found}


def demo_page(classifier: Classifier, name: str = "A net") -> Any:
    """Return the page as `gradio.Blocks`; `name` is that of the net. Raises SettingsError if gradio is missing."""
    gradio = import_extra("gradio", "demo")
    given = {"net": classifier, "name": name, "most": _MOST}

    def answer(chosen: list[str] | None) -> Iterator[str]:
        for facts in answers_to(classifier, [Path(file) for file in chosen or ()]):
            yield page("demo.html", given | facts | {"part": "answers"})

    with gradio.Blocks(title=f"{name} - leukemia-dl", analytics_enabled=False, delete_cache=(600, 3600)) as made:
        gradio.HTML(page("demo.html", given | {"part": "head"}), apply_default_css=False)
        files = gradio.File(label=f"Images (at most {_MOST})", file_count="multiple", elem_id="images", height=200)
        answers = gradio.HTML(next(answer(None)), apply_default_css=False)
        gradio.HTML(page("demo.html", given | {"part": "net"}), apply_default_css=False)
        files.change(answer, files, answers, api_visibility="private", show_progress="minimal")
    return made


def serve(classifier: Classifier, ready: Callable[[str], object], port: int = 7860, name: str = "A net") -> None:
    """Serve `demo_page` until KeyboardInterrupt, then delete its images; `ready` gets the address, of a free port."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with _free_socket(port) as bound, tempfile.TemporaryDirectory(prefix="leukemia-dl-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # taken from there alone
        try:
            made = demo_page(classifier, name)
            made.has_launched = True  # otherwise gradio reads any path that a request names, uploaded or not
            import fastapi
            import gradio
            import uvicorn
            from starlette.middleware.trustedhost import TrustedHostMiddleware

            app = fastapi.FastAPI(openapi_url=None)
            app.add_middleware(TrustedHostMiddleware, allowed_hosts=[_HOST, "localhost"])
            theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
            gradio.mount_gradio_app(
                app, made, "/", theme=theme, css=page("demo.css", {}), footer_links=[], root_path="", ssr_mode=False,
                run_history=False, mcp_server=False, max_file_size="320mb",
                i18n=gradio.I18n(en={"common.upload": "Add images"}),
            )  # fmt: skip
            config = uvicorn.Config(app, headers=_HEADERS, log_level="critical", timeout_graceful_shutdown=1)
            ready(f"http://{_HOST}:{bound.getsockname()[1]}/")
            uvicorn.Server(config).run(sockets=[bound])
        finally:
            del os.environ["GRADIO_TEMP_DIR"]


def _free_socket(port: int) -> socket.socket:
    for number in range(port, min(port + _PORTS, 65_536)):
        with contextlib.suppress(OSError):
            return socket.create_server((_HOST, number))
    raise SettingsError(f"None of the {_PORTS} ports from {port} on is free. Choose another one.")


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect the warnings of this library while a block runs."""
    found, handler, log = list[str](), logging.Handler(logging.WARNING), logging.getLogger("leukemia_dl")
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        yield found
    finally:
        log.removeHandler(handler)
