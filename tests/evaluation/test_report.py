"""The report is one well-formed page that needs nothing else; the table says the same in the terminal."""

import base64
import io
import re
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from tests.evaluation.worlds import lists, world
from towers.errors import ConfigError
from towers.evaluation.evaluate import METRICS, evaluate
from towers.evaluation.examples import draw_examples
from towers.evaluation.pictures import curve
from towers.evaluation.report import write_report
from towers.evaluation.slices import history_length, target_warmth
from towers.evaluation.table import table

HOSTILE = '<script>alert("$x$")</script> & [bold]'


class Page(HTMLParser):
    """Fails on a tag that is not closed in order; keeps text and images."""

    void = frozenset({"meta", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.images, self.text = [], set(), [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


@pytest.fixture(scope="module")
def evaluation():
    task, queries, candidates = world(3, queries=80)
    lengths = np.arange(80) % 9
    slices = {
        "history length": history_length(lengths),
        HOSTILE: target_warmth(task.targets, np.arange(40) % 2),
    }
    return evaluate(task, queries, candidates, ks=(1, 5, 20), metrics=(*METRICS, "auc", "mrr@all"), slices=slices)


@pytest.fixture(scope="module")
def examples(evaluation):
    return draw_examples(evaluation, lambda q: f"Member {q}", lambda item: f"{HOSTILE} {item}", lambda q: [1, 2, 3])


def test_the_page_is_whole_and_needs_nothing_else(tmp_path, evaluation, examples):
    write_report(tmp_path / "report.html", evaluation, examples, {"commit": HOSTILE})
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.seen
    assert not re.search(r"(src|href)=(?!\"data:)|url\(|@import|http", text)
    words = " ".join(page.text)
    assert HOSTILE in words  # as text
    for name, value in evaluation.values.items():
        assert f"{value:.4f}" in words, name
    interval = evaluation.intervals["recall@5"]
    assert f"{interval.low:.4f} to {interval.high:.4f}" in words


def test_its_pictures_are_drawn(tmp_path, evaluation):
    write_report(tmp_path / "report.html", evaluation)
    images = Page((tmp_path / "report.html").read_text()).images
    assert [i["alt"] for i in images] == [
        "Recall and NDCG over K",
        "Recall@5 by history length",
        f"Recall@5 by {HOSTILE}",
    ]
    for image in images:
        svg = ElementTree.fromstring(base64.b64decode(image["src"].removeprefix("data:image/svg+xml;base64,")))
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(svg.findall(".//{http://www.w3.org/2000/svg}path")) > 10


def test_equal_results_give_equal_pages(tmp_path, evaluation, examples):
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, evaluation, examples)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_curve_passes_through_the_metrics(evaluation):
    for name in ("recall", "ndcg"):
        expected = [evaluation.values[f"{name}@{k}"] for k in evaluation.ks]
        np.testing.assert_allclose(curve(evaluation, name, evaluation.ks), expected)


def test_examples_show_the_ranking_as_it_is(evaluation, examples):
    assert len({x.query for x in examples}) == 6
    for x in examples:
        q = int(x.query.removeprefix("Member "))
        targets = lists(evaluation.task.targets)[q]
        shown = [i for i in evaluation.ranking.items[q, :5].tolist() if i >= 0]
        assert [a.title for a in x.answers] == [f"{HOSTILE} {i}" for i in shown]
        assert [a.hit for a in x.answers] == [i in targets for i in shown]
        everything = evaluation.ranking.items[q].tolist()
        assert [p for _, p in x.targets] == [everything.index(t) + 1 if t in everything else 0 for t in targets[:5]]


def test_without_matplotlib_it_says_what_to_install(tmp_path, evaluation, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match="need matplotlib: pip install"):
        write_report(tmp_path / "report.html", evaluation)
    assert list(tmp_path.iterdir()) == []


def test_the_terminal_table_holds_every_value(evaluation):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table(evaluation))
    text = console.export_text()
    for name, value in evaluation.values.items():
        assert f"{value:.4f}" in text, name
    assert HOSTILE in text
    assert "cold (" in text
