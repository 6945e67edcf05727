"""Pages of reports: what they say and hold, and writing them quickly."""

import re
from html.parser import HTMLParser

import pytest

from leukemia_dl.reporting import plots, write_report


class Page(HTMLParser):
    """Text, headings, images and everything that could run or fetch."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.images, self.scripts, self.links, self.stack = [], [], 0, [], []
        self.text = ""
        self.feed(text)
        assert not self.stack, self.stack

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        assert not any(name.startswith("on") for name in found), found
        if tag not in ("meta", "img", "br", "link"):
            self.stack.append(tag)
        self.images += [found] if tag == "img" else []
        self.links += [found["href"]] if tag in ("a", "link") else []
        self.scripts += tag == "script"
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ("script", "style"):
            self.text += data


def page_of(path):
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.scripts == 1
    assert page.headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert all(image["alt"] and image["src"].startswith("data:image/") for image in page.images)
    assert all(link.startswith(("#", "data:,")) for link in page.links), page.links
    assert "nan" not in re.findall(r"[a-z]+", page.text.replace("tiny", ""))
    assert "For research use only" in page.text
    return page


def write(store, rendered=False, **settings):
    """Return the page of a store, whose figures are drawn but not rendered, which would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        if not rendered:
            patch.setattr(plots, "image_of", lambda *_: b"")
        return page_of(write_report(store, show_progress=False, **settings))
