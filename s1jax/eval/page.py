"""`index.html`: the picture, what it says, tables, and traces with the tokens that were put there marked. One file."""

import base64
import dataclasses
import html
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from s1jax.eval.terminal import describe
from s1jax.records import Sample
from s1jax.text.tokens import Tokenizer

LONGEST = 6000
UPSTREAM = (
    "By upstream's rules: the same samples, graded as the evaluation of simplescaling/s1 (commit 77272c6) grades them "
    "before it asks its network judge, which is left out. It takes the last box behind the last answer header (in the "
    'whole response where there is none), else what follows "Answer:", else everything, and compares letter for '
    "letter, but for leading zeros of integers; a multiple-choice answer that it cannot read counts as A. The accuracy "
    "beside it reads answers in any common dress and compares what they mean."
)
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fff;max-width:62rem;margin:2.5rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2.2rem}img{max-width:100%;height:auto}
p.sub{color:#666;margin-top:0}ul.said li{margin:.3rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.3rem .8rem;text-align:right;border-bottom:1px solid #e4e4e4}
th:first-child,td:first-child{text-align:left}
th{font-weight:600;color:#555}pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f7f7f7;padding:.9rem;
border-radius:4px;font:13px/1.5 ui-monospace,monospace}details{margin:.6rem 0}summary{cursor:pointer}
dl{display:grid;grid-template-columns:max-content auto;gap:.1rem .9rem;font-size:.92rem}dt{color:#555}dd{margin:0}
.think{color:#777}mark{background:#ffe3a6;color:#5a3b00;border-radius:2px}.right{color:#1b7f3b}.wrong{color:#b3261e}
"""


@dataclasses.dataclass(frozen=True)
class Made:
    """How one setting was evaluated.

    Attributes:
      date: when its report was written, in words; "" where that is not known.
      files: paths from the page, by what they are called.
    """

    date: str = ""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


def render(
    scaling: Mapping[str, Any],
    reports: Sequence[Mapping[str, Any]],
    findings: Sequence[str],
    picture: bytes,
    traces: Sequence[str],
    made: Sequence[Made] = (),
    files: Mapping[str, str] | None = None,
) -> str:
    """The page as text.

    Args:
      picture: the PNG, which is put into the page.
      traces: HTML of `trace`, or of a note why there is none.
      made: of each report.
      files: beside the page, by what they are called.
    """
    title = html.escape(f"{scaling['benchmark']}: what thinking tokens buy")
    said = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in findings)
    image = base64.b64encode(picture).decode("ascii")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head><body>'
        f'<h1>{title}</h1><p class="sub">{html.escape(scaling["model"])}; {html.escape(describe(reports[0]))}</p>'
        f'<img alt="accuracy against tokens" src="data:image/png;base64,{image}">'
        f'<h2>What it says</h2><ul class="said">{said}</ul>'
        f"<h2>Figures</h2>{_figures(scaling)}<h2>Settings</h2>{_settings(reports)}{_votes(scaling)}"
        f"<h2>How it was run</h2>{_about(reports)}{_runs(reports, made)}{_links('This page', files or {})}"
        f"<h2>Traces</h2><p>Grey is thinking, <mark>marked</mark> what the control put there.</p>{''.join(traces)}"
        "</body></html>\n"
    )


def _figures(scaling: Mapping[str, Any]) -> str:
    rows = []
    for name, scale, form in (
        ("control", 100, "{:.1f} %"),
        ("scaling", 1, "{:+.2f}"),
        ("scaling_unmerged", 1, "{:+.2f}"),
        ("scaling_per_1000", 1, "{:+.2f}"),
        ("performance", 100, "{:.1f} %"),
    ):
        figure = scaling[name]
        value = figure.get("reason", "") if figure["value"] is None else form.format(scale * figure["value"])
        limits = "" if figure["low"] is None else " to ".join(form.format(scale * figure[k]) for k in ("low", "high"))
        unit = scaling["units"].get(name, "accuracy of the best setting")
        rows.append((name.replace("_", " "), value, limits, unit))
    return _table(("", "value", "95 % interval", "unit"), rows)


def _settings(reports: Sequence[Mapping[str, Any]]) -> str:
    names = (
        "setting",
        "samples",
        "accuracy",
        "95 % interval",
        "by upstream's rules",
        "thinking tokens",
        "all tokens",
        "within limits",
    )
    rows = []
    for report in reports:
        interval, within = report["interval"], report["within_budget"]
        rows.append(
            (
                report["label"],
                str(report["samples_per_question"]),
                f"{100 * report['accuracy']:.1f} %",
                f"{100 * interval['low']:.1f} to {100 * interval['high']:.1f}",
                f"{100 * report['accuracy_by_upstream_rules']['value']:.1f} %",
                f"{report['mean_thinking_tokens']:,.1f}",
                f"{report['mean_total_tokens']:,.1f}",
                "" if within is None else f"{100 * within:.1f} %",
                f"{report['no_answer']} of {report['rows']}",
                f"{report['truncated']}",
            )
        )
    return _table((*names, "no answer", "cut"), rows) + f"<p>{html.escape(UPSTREAM)}</p>" + _plan(reports)


def _about(reports: Sequence[Mapping[str, Any]]) -> str:
    """What the settings share, and the SHA-256 of what was read, as far as the reports say it."""
    names = ("model", "tokenizer", "dtype", "instruction", "grader")
    rows = [(name, _shared(report.get(name) for report in reports)) for name in names]
    keys = dict.fromkeys(key for report in reports for key in report.get("fingerprints") or {})
    prints = [(key, _shared((report.get("fingerprints") or {}).get(key) for report in reports)) for key in keys]
    rows += [(f"fingerprint of {key}", value) for key, value in prints]
    terms = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in rows if value)
    return f"<dl>{terms}</dl>" if terms else ""


def _shared(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value not in (None, "")))


def _runs(reports: Sequence[Mapping[str, Any]], made: Sequence[Made]) -> str:
    """Seed, sampling, date and files of each setting."""
    rows = []
    for report, each in zip(reports, [*made, *[Made()] * len(reports)], strict=False):
        seeds = ", ".join(map(str, report.get("seeds") or [report.get("seed", "")]))
        rows.append((report["label"], seeds, _sampling(report.get("sampling") or {}), each.date, each.files))
    head = "".join(f"<th>{name}</th>" for name in ("setting", "seed", "sampling", "evaluated", "files"))
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row[:-1])}<td>{_anchors(row[-1])}</td></tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _sampling(sampling: Mapping[str, Any]) -> str:
    """`temperature 0.7, top_p 0.95, n 4`: what bounds or changes a draw."""
    idle = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "n": 1, "max_new_tokens": None, "stop": [], "logprobs": False}
    said = [f"{name} {value}" for name, value in sampling.items() if name not in idle or value != idle[name]]
    return ", ".join(said) + (" (greedy)" if sampling.get("temperature") == 0 else "")


def _anchors(files: Mapping[str, str]) -> str:
    return ", ".join(
        f'<a href="{html.escape(urllib.parse.quote(path), quote=True)}">{html.escape(name)}</a>'
        for name, path in files.items()
    )


def _links(what: str, files: Mapping[str, str]) -> str:
    return f"<p>{html.escape(what)}: {_anchors(files)}</p>" if files else ""


def _plan(reports: Sequence[Mapping[str, Any]]) -> str:
    """What the noisiest setting needs."""
    report = max(reports, key=lambda report: report["samples_to_show"][0]["samples"])
    plans = report["samples_to_show"]
    needed = "; ".join(
        f"{plan['points']} point{'s' * (plan['points'] > 1)}: {plan['samples_per_question']:,}" for plan in plans
    )
    how = "bounded by what these samples show"
    if plans[0]["noise_is_assumed"]:
        how = "assumed as large as the accuracy allows, since these samples do not show it"
    return (
        f"<p>Samples of each question, drawn at a temperature above 0 in both settings, that are enough to tell apart "
        f"two settings on these {report['questions']} questions (80 % power) at a difference of {needed}. The noise "
        f"between samples of a question is {how}. This says nothing of other questions: for those the intervals hold."
        "</p>"
    )


def _votes(scaling: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{vote['votes']} voters" + ("" if vote["budget"] is None else f", budget {vote['budget']} each"),
            f"{100 * vote['accuracy']:.1f} %",
            f"{100 * vote['interval']['low']:.1f} to {100 * vote['interval']['high']:.1f}",
            f"{vote['total_tokens']:,.1f}",
        )
        for vote in scaling["votes"]
    ]
    return "<h2>Majority votes</h2>" + _table(("vote", "accuracy", "95 % interval", "all tokens"), rows) if rows else ""


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def trace(sample: Sample, label: str, tokenizer: Tokenizer | None) -> str:
    """One sample, folded up: question, reference, what was extracted, thinking in grey, forced tokens marked.

    Without the tokenizer the text stands unmarked.
    """
    verdict = "right" if sample.correct else "no answer" if sample.no_answer else "wrong"
    css = "right" if sample.correct else "wrong"
    body = html.escape(_cut(sample.text)) if tokenizer is None else _marked(sample, tokenizer)
    thought = f"{sample.thinking_tokens} tokens of thinking, {sample.extra.get('n_ignored', 0)} ends ignored"
    found = "" if sample.extracted is None else f", answered {html.escape(_cut(sample.extracted)[:80])}"
    return (
        f'<details><summary>{html.escape(label)}: <span class="{css}">{verdict}</span>{found}; '
        f"{thought}</summary><p>{html.escape(_cut(sample.question))}</p>{_graded(sample)}<pre>{body}</pre></details>"
    )


def _graded(sample: Sample) -> str:
    """What was found, what it was compared with, and which sample it is."""
    extracted = "nothing" if sample.extracted is None else _cut(sample.extracted)
    rule = f" (rule: {sample.rule})" if sample.rule else ""
    undecided = "; the comparison did not come to an end, which counts as wrong" if sample.undecided else ""
    terms = (
        ("reference", _cut(sample.gold or "none")),
        ("extracted", f"{extracted}{rule}{undecided}"),
        ("sample", f"{sample.sample} of {sample.id}, seed {sample.seed}, {sample.finish_reason}"),
    )
    inner = "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in terms)
    return f"<dl>{inner}</dl>"


def _marked(sample: Sample, tokenizer: Tokenizer) -> str:
    spans, begin = [], 0
    kinds = [(forced, i < sample.thinking_tokens) for i, forced in enumerate(sample.forced)]
    for i in range(1, len(kinds) + 1):
        if i == len(kinds) or kinds[i] != kinds[begin]:
            text = html.escape(_cut(tokenizer.decode(sample.token_ids[begin:i])))
            forced, thinking = kinds[begin]
            text = f"<mark>{text}</mark>" if forced else text
            spans.append(f'<span class="think">{text}</span>' if thinking else text)
            begin = i
    return "".join(spans)


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST // 2]}\n[... {len(text) - LONGEST:,} characters ...]\n{text[-LONGEST // 2 :]}"
