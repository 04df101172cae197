"""The verb `report`: finished `eval` folders -> `scaling.json`, `scaling.png`, `index.html`, and a table."""

import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s1jax.config import BadInput, Count, free
from s1jax.eval import page, plot, scaling, summary, terminal
from s1jax.eval.findings import findings
from s1jax.eval.summary import REPORT, SAMPLES
from s1jax.records import Sample, to_completion, write_json
from s1jax.runs import places
from s1jax.runs.folder import entered
from s1jax.text.tokens import Tokenizer


@dataclasses.dataclass(frozen=True)
class ReportRun:
    """Which evaluations make one curve.

    Attributes:
      reports: out folders of `eval`; a sweep's folder stands for all its settings.
      traces: samples shown in the page.
      out: where the report is written.
    """

    reports: tuple[str, ...]
    out: str = ""
    traces: Count = free(6)


def run(config: ReportRun) -> pathlib.Path:
    """Read, compute, write. Returns the folder.

    Raises:
      BadInput: a folder without reports, or reports that make no curve.
    """
    found: Sequence[tuple[pathlib.Path, Mapping[str, Any]]] = read_reports(config.reports)
    try:
        data, found, traces = _composed(found, config.traces)
    except BadInput:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        files = ", ".join(str(folder / REPORT) for folder, _ in found)
        raise BadInput(
            f"one of {files} or its samples is damaged ({error!r}); evaluate again, or leave it out"
        ) from None
    with entered(config, device="none") as out:
        _write(out, data, found, traces)
    return places.place(config.out)


def read_reports(folders: Sequence[str]) -> list[tuple[pathlib.Path, dict[str, Any]]]:
    """(folder, report) of every `report.json` in or below the folders, in order.

    Raises:
      BadInput: a folder without one, or one that is none.
    """
    found = []
    for folder in map(places.fetched, folders):
        files = sorted(folder.rglob(REPORT))
        if not files:
            raise BadInput(f"{folder} holds no {REPORT}; give the out folders of finished eval runs")
        for file in files:
            report: Any = None
            with contextlib.suppress(ValueError, RecursionError):
                report = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(report, dict) or report.get("format") != summary.FORMAT:
                raise BadInput(f"{file} is no JSON of format {summary.FORMAT}; evaluate again with this version")
            found.append((file.parent, report))
    if not found:
        raise BadInput("reports is empty; give the out folders of finished eval runs")
    return found


def write_report(
    out: pathlib.Path, found: Sequence[tuple[pathlib.Path, Mapping[str, Any]]], *, traces: int = 6
) -> dict[str, Any]:
    """Write `scaling.json`, `scaling.png` and `index.html`, print the table; returns the content of `scaling.json`.

    Args:
      found: (folder with the samples, report) of every setting.
      traces: samples shown in the page.

    Raises:
      BadInput: reports of different benchmarks, models or questions, or only votes.
    """
    data, found, shown = _composed(found, traces)
    _write(out, data, found, shown)
    return data


def _composed(
    found: Sequence[tuple[pathlib.Path, Mapping[str, Any]]], traces: int
) -> tuple[dict[str, Any], list[tuple[pathlib.Path, Mapping[str, Any]]], list[str]]:
    """The content of `scaling.json`, `found` by its thinking, and the traces to show; nothing is written yet."""
    found = sorted(found, key=lambda item: item[1]["mean_thinking_tokens"])
    reports = [report for _, report in found]
    points = summary.points(reports)
    if not any(point.votes == 1 for point in points):
        raise BadInput("the reports hold votes only; a curve needs single runs beside them")
    first = reports[0]
    described = {"benchmark": first["benchmark"], "model": first["model"], "grader": first["grader"]}
    data = scaling.to_json(points, **described)
    data["findings"] = findings(points, data)
    shown = list(_traces(found, traces))
    page.render(data, reports, data["findings"], b"", shown)  # what is damaged in the reports is said before a file is
    return data, found, shown


def _write(
    out: pathlib.Path,
    data: dict[str, Any],
    found: Sequence[tuple[pathlib.Path, Mapping[str, Any]]],
    traces: Sequence[str],
) -> None:
    reports = [report for _, report in found]
    made = [_made(folder, out) for folder, _ in found]
    beside = {name: name for name in ("scaling.json", "scaling.png")}
    write_json(out / "scaling.json", data)
    plot.draw(data, out / "scaling.png")
    picture = (out / "scaling.png").read_bytes()
    text = page.render(data, reports, data["findings"], picture, traces, made, beside)
    (out / "index.html").write_text(text, encoding="utf-8")
    terminal.show(reports)
    for sentence in data["findings"]:
        print(sentence)


def _made(folder: pathlib.Path, out: pathlib.Path) -> page.Made:
    """When the report of a setting was written, and its files as seen from the page."""
    files = {name: folder / name for name in (REPORT, SAMPLES)}
    files |= {"run.json": next((p / "run.json" for p in (folder, folder.parent) if (p / "run.json").is_file()), folder)}
    there = {name: os.path.relpath(path, out) for name, path in files.items() if path.is_file()}
    if REPORT not in there:
        return page.Made("", there)
    written = datetime.datetime.fromtimestamp(files[REPORT].stat().st_mtime, datetime.UTC)
    return page.Made(f"{written:%Y-%m-%d %H:%M} UTC", there)


def _traces(found: Sequence[tuple[pathlib.Path, Mapping[str, Any]]], n: int) -> Iterator[str]:
    """Samples of settings with most thinking first: of each a right and a wrong one."""
    tokenizer, shown = None, 0
    for folder, report in sorted(found, key=lambda item: -item[1]["mean_thinking_tokens"]):
        if shown >= n:
            return
        if report.get("private"):
            yield "<p>The authors of this benchmark ask that nothing of it is shown.</p>"
            return
        if tokenizer is None and report.get("tokenizer"):
            with contextlib.suppress(BadInput):
                tokenizer = Tokenizer.load(report["tokenizer"])
        for sample in itertools.islice(_right_and_wrong(folder / SAMPLES), n - shown):
            shown += 1
            yield page.trace(sample, report["label"], tokenizer)


def _right_and_wrong(path: pathlib.Path) -> Iterator[Sample]:
    """The first right and the first wrong sample of a file; only as many lines are read as that takes."""
    wanted = {True, False}
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise BadInput(f"{path}:{number} is no JSON; remove that line, or evaluate again") from None
            if row.get("correct") in wanted:
                wanted.remove(row["correct"])
                yield to_completion(row, Sample, f"{path} ")
            if not wanted:
                return
