"""A report as a test reads it: parsed, with its text and the figures of its charts."""

import json
from html.parser import HTMLParser

import numpy as np

VOID = {"meta", "br", "link", "img", "input", "hr", "source", "wbr"}


class Page(HTMLParser):
    """A parsed report: balanced tags, attributes, text, scripts, styles, figures."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.open, self.attributes, self.ids = [], [], []
        self.text, self.scripts, self.styles = [], [], []
        self.html = path.read_text()
        self.feed(self.html)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))
        self.figures = json.loads(next(s for s in self.scripts if s.startswith("{")))

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        where = self.open[-1] if self.open else ""
        {"script": self.scripts, "style": self.styles}.get(where, self.text).append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    def heat_map(self, name):
        return np.array(self.figures[name]["data"][0]["z"])
