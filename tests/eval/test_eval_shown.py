"""What a reader sees of made-up reports: cells of the tables, labels and points of the picture, the traces."""

import html.parser
import io

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from s1jax import records
from s1jax.eval import page, plot, report, terminal
from s1jax.records import Sample
from s1jax.text.tokens import byte_tokenizer


def made_report(label: str, accuracy: float, thinking: float, **fields) -> dict:
    return {
        **{"label": label, "benchmark": "sums", "model": "M & N", "questions": 24, "official_size": 30, "rows": 48},
        **{"samples_per_question": 2, "accuracy": accuracy},
        "interval": {"low": accuracy - 0.125, "high": accuracy + 0.0625},
        **{"accuracy_by_upstream_rules": {"value": accuracy / 2}, "mean_thinking_tokens": thinking},
        **{"mean_total_tokens": thinking + 1000, "within_budget": 0.875, "no_answer": 3, "truncated": 5},
        "samples_to_show": [
            {"points": n, "samples_per_question": 7 * n, "samples": 168 * n, "noise_is_assumed": False}
            for n in (1, 5, 10)
        ],
        **fields,
    }  # fmt: skip


FIRST, SECOND = made_report("budget 8", 0.25, 8.0), made_report("free", 0.5, 1234.5, within_budget=None)
FIGURE = {"value": 0.5, "low": 0.25, "high": 0.75}
SCALING = {
    **{"benchmark": "sums", "model": "M & N", "questions": 24, "votes": []},
    **{"control": FIGURE, "performance": FIGURE, "units": {}},
    **{name: {"value": 1.5, "low": -0.5, "high": 3.5} for name in ("scaling", "scaling_unmerged", "scaling_per_1000")},
}


class Tables(html.parser.HTMLParser):
    """The cells of every table of a page, row by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._is_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._is_cell = True

    def handle_endtag(self, tag):
        self._is_cell = self._is_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._is_cell:
            self.rows[-1][-1] += data


CELLS = ["2", "25.0 %", "12.5 to 31.2", "8.0", "1,008.0", "87.5 %", "3 of 48", "5"]


def test_the_terminals_cells():
    shown = terminal.table([FIRST, SECOND])
    cells = [list(column.cells) for column in shown.columns]
    assert [column[0] for column in cells] == ["budget 8", *CELLS]
    assert [column[1] for column in cells] == [
        *("free", "2", "50.0 %", "37.5 to 56.2", "1,234.5", "2,234.5", "", "3 of 48", "5"),
    ]
    assert shown.title == "sums: 24 questions of 30"
    assert terminal.describe({**FIRST, "official_size": 24}) == "24 questions"
    assert terminal.describe({**FIRST, "official_size": None}) == "24 questions"
    out = io.StringIO()
    Console(file=out, width=140).print(shown)
    assert "25.0 %" in out.getvalue()


def test_the_pages_cells():
    text = page.render(SCALING, [FIRST, SECOND], ["<more> & less"], b"png", ["<details>x</details>"])
    rows = Tables(text).rows
    by_name = {row[0]: row[1:] for row in rows if len(row) != 5}  # not how it was run
    assert by_name["budget 8"] == ["2", "25.0 %", "12.5 to 31.2", "12.5 %", *CELLS[3:]]
    assert by_name["free"][6] == ""
    assert by_name["control"][:2] == ["50.0 %", "25.0 % to 75.0 %"] == by_name["performance"][:2]
    assert by_name["scaling"][:2] == ["+1.50", "-0.50 to +3.50"] == by_name["scaling per 1000"][:2]
    assert "&lt;more&gt; &amp; less" in text and "M &amp; N" in text and "<details>x</details>" in text
    assert "data:image/png;base64,cG5n" in text and "24 questions of 30" in text
    assert "1 point: 7; 5 points: 35; 10 points: 70" in text and "Majority votes" not in text
    no_slope = {**SCALING, "scaling": {"value": None, "low": None, "high": None, "reason": "one point"}}
    assert {row[0]: row[1:3] for row in Tables(page.render(no_slope, [FIRST], [], b"", [])).rows}["scaling"] == [
        *("one point", ""),
    ]


def test_the_page_says_how_it_was_run():
    fields = {"model": "M & N", "dtype": "float32", "fingerprints": {"model": "ab12", "benchmark": "cd34"}}
    greedy = {**FIRST, **fields, "seed": 3, "seeds": [3], "sampling": {"temperature": 0.0, "top_p": 1.0, "n": 1}}
    warm = {"temperature": 0.7, "top_p": 0.9, "n": 4, "stop": [], "max_new_tokens": 50}
    drawn = {**SECOND, **fields, "seeds": [3, 4], "sampling": warm}
    made = [page.Made("2026-01-02 03:04 UTC", {"samples.jsonl": "../a b/samples.jsonl"}), page.Made()]
    text = page.render(SCALING, [greedy, drawn], [], b"", [], made, {"scaling.json": "scaling.json"})
    by_name = {row[0]: row[1:] for row in Tables(text).rows if len(row) == 5}
    assert by_name["budget 8"] == ["3", "temperature 0.0 (greedy)", "2026-01-02 03:04 UTC", "samples.jsonl"]
    assert by_name["free"] == ["3, 4", "temperature 0.7, top_p 0.9, n 4, max_new_tokens 50", "", ""]
    for term, value in (("model", "M &amp; N"), ("dtype", "float32"), ("fingerprint of model", "ab12")):
        assert f"<dt>{term}</dt><dd>{value}</dd>" in text
    assert 'href="../a%20b/samples.jsonl"' in text and '<a href="scaling.json">scaling.json</a>' in text
    assert "simplescaling/s1 (commit 77272c6)" in text and "By upstream" in text
    changed = {**drawn, "fingerprints": {"model": "ef56"}}
    assert "<dt>fingerprint of model</dt><dd>ab12, ef56</dd>" in page.render(SCALING, [greedy, changed], [], b"", [])
    assert "<dl>" not in page.render({**SCALING}, [{**FIRST, "model": None}], [], b"", [])


def test_the_pages_votes():
    vote = {"votes": 8, "budget": 16, "accuracy": 0.625, "interval": {"low": 0.5, "high": 0.75}, "total_tokens": 1234.5}
    text = page.render({**SCALING, "votes": [vote, {**vote, "votes": 2, "budget": None}]}, [FIRST], [], b"", [])
    rows = Tables(text).rows
    assert ["8 voters, budget 16 each", "62.5 %", "50.0 to 75.0", "1,234.5"] in rows
    assert ["2 voters", "62.5 %", "50.0 to 75.0", "1,234.5"] in rows


TOKENIZER = byte_tokenizer()


def sample(text: str, forced: str, thinking: int, **fields) -> Sample:
    """A sample of one byte a token; `forced` has an x under every token that was put there."""
    ids = tuple(TOKENIZER.encode(text))
    given = {
        **{"id": "q", "sample": 0, "seed": 0, "prompt_ids": (1,), "token_ids": ids, "thinking_tokens": thinking},
        **{"forced": tuple(mark == "x" for mark in forced.ljust(len(ids))), "answer_offset": thinking},
        **{"answer_tokens": len(ids) - thinking, "extra": {"n_ignored": 2}, "steps": len(ids)},
        **{"thinking_finish_reason": "budget", "finish_reason": "stop", "text": text, "question": "1 < 2?"},
        **{"extracted": "4", "gold": "4"},
    }  # fmt: skip
    return Sample(**{**given, **fields})


def test_a_trace_marks_what_was_put_there():
    text = page.trace(sample("abcdef", "  xx x", 4, correct=True), "budget 4", TOKENIZER)
    assert '<span class="think">ab</span><span class="think"><mark>cd</mark></span>e<mark>f</mark>' in text
    assert '<span class="right">right</span>, answered 4; 4 ' in text and "2 ends ignored" in text
    assert "<p>1 &lt; 2?</p>" in text and "budget 4" in text
    assert "<dt>reference</dt><dd>4</dd>" in text and "<dt>extracted</dt><dd>4</dd>" in text
    assert "<dt>sample</dt><dd>0 of q, seed 0, stop</dd>" in text
    plain = page.trace(sample("abcdef", "  xx x", 4), "budget 4", None)
    assert "<pre>abcdef</pre>" in plain and '<span class="wrong">wrong</span>' in plain
    missing = page.trace(sample("abcdef", "", 4, no_answer=True, extracted=None), "b", None)
    assert '<span class="wrong">no answer</span>; ' in missing and "<dt>extracted</dt><dd>nothing</dd>" in missing
    wrong = page.trace(sample("ab", "", 1, extracted="x<y", gold="4&5", rule="boxed", undecided=True), "b", None)
    assert "<dt>reference</dt><dd>4&amp;5</dd>" in wrong and "x&lt;y (rule: boxed); the comparison did not" in wrong


def test_long_texts_lose_their_middle(monkeypatch):
    monkeypatch.setattr(page, "LONGEST", 10)
    assert page._cut("0123456789") == "0123456789"
    assert page._cut("0123456789ab") == "01234\n[... 2 characters ...]\n789ab"


@pytest.fixture
def drawn(monkeypatch):
    """The figure in place of the file that it would become."""
    figures = []
    monkeypatch.setattr(FigureCanvasAgg, "print_figure", lambda self, *_, **__: figures.append(self.figure))
    return figures


def point(thinking: float, accuracy: float, n_ignore: int = 0, **fields) -> dict:
    interval = {"low": accuracy - 0.1, "high": accuracy + 0.2}
    return {
        **{"thinking_tokens": thinking, "total_tokens": thinking + 10, "accuracy": accuracy, "interval": interval},
        **{"n_ignore": n_ignore, "budget": None, "votes": 1, **fields},
    }


def test_the_picture_has_percents_over_tokens(drawn):
    points = [point(64, 0.5), point(16, 0.25), point(80, 0.625, 2)]
    votes = [point(100, 0.75, votes=4), point(50, 0.5, votes=2), point(60, 0.5, votes=2, budget=8)]
    plot.draw({**SCALING, "points": points, "votes": votes}, "x.png")
    [figure] = drawn
    left, right = figure.axes
    lines = {line.get_label(): line for line in left.get_lines() if not line.get_label().startswith("_")}
    assert list(lines["thinking budgets"].get_xdata()) == [16, 64]
    assert list(lines["thinking budgets"].get_ydata()) == [25, 50]
    assert list(lines["ends of thinking ignored"].get_xdata()) == [80]
    assert left.get_ylabel() == "accuracy (%)" and "of thinking a question (log scale)" in left.get_xlabel()
    assert [text.get_text() for text in left.texts] == ["2x"] and left.texts[0].xy == (80, 62.5)
    assert [text.get_text() for text in right.texts] == ["of 2", "of 4", "of 2"]
    mine = {line.get_label(): line for line in right.get_lines()}
    assert list(mine["majority vote"].get_xdata()) == [60, 110] and list(mine["majority vote"].get_ydata()) == [50, 75]
    assert list(mine["one answer, longer thinking"].get_xdata()) == [26, 74, 90]
    assert left.get_ylim() == (0, 105) and left.get_xlim()[0] < 16 and left.get_xlim()[1] > 80
    assert "24 questions: +1.5 points per doubling of thinking (95 % interval -0.5 to +3.5)" in figure.get_suptitle()
    spans = left.containers[0].lines[2][0].get_segments()
    assert [(round(low), round(high)) for (_, low), (_, high) in spans] == [(15, 45), (40, 70)]


def test_points_below_one_token_stand_left_of_it(drawn):
    plot.draw({**SCALING, "points": [point(0, 0.25), point(8, 0.5)], "votes": []}, "x.png")
    plot.draw({**SCALING, "points": [point(1, 0.25), point(8, 0.5)], "votes": []}, "x.png")
    below, at_one = (figure.axes[0] for figure in drawn)
    assert below.get_xscale() == "symlog" and below.get_xlim()[0] < 0 and at_one.get_xscale() == "log"
    assert len(drawn[0].axes) == 1 and list(below.get_xticks())[0] == 0


def test_traces_are_of_the_settings_that_think_most(tmp_path):
    """Of each a right and a wrong one, up to the number asked for."""
    found = []
    for number, thinking in enumerate((10, 30, 20)):
        folder = tmp_path / str(number)
        rows = [sample(f"{thinking}-{i}", "", 2, correct=i >= 2) for i in range(4)]
        records.write_jsonl(folder / "samples.jsonl", rows)
        found.append((folder, made_report(f"budget {thinking}", 0.5, thinking)))
    shown = list(report._traces(found, 5))
    texts = [text.partition("<pre>")[2].partition("</pre>")[0] for text in shown]
    assert texts == ["30-0", "30-2", "20-0", "20-2", "10-0"]
    assert list(report._traces(found, 0)) == []
    private = [(folder, {**made, "private": True}) for folder, made in found]
    [note] = report._traces(private, 5)
    assert "nothing of it is shown" in note
