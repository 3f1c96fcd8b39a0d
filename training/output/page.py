"""The report as one HTML page: no script, nothing from elsewhere, every text escaped."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lookback.training.evaluation.found import EVENTS, FOUND, WEIGHT, AttentionFound, Stratum
from lookback.training.evaluation.names import metric_of
from lookback.training.outcome import Outcome
from lookback.training.output.evaluation_plots import STRATA_TITLES
from lookback.training.output.plots import words_of


class Picture(NamedTuple):
    """A plot: the name of its file, what it shows, and itself as the address of an image."""

    name: str
    alt: str
    address: str


@dataclasses.dataclass(frozen=True)
class Page:
    """What stands on the page.

    Attributes:
      title: heading, and title of the window.
      subtitle: below it.
      outcome: of the run.
      epochs: figures of each epoch's end, by name, "epoch" among them.
      pictures: the plots.
      options: every option of the run.
      changed: names of those that are not at their defaults.
    """

    title: str
    subtitle: str
    outcome: Outcome
    epochs: Sequence[Mapping[str, Any]]
    pictures: Sequence[Picture]
    options: Mapping[str, Any]
    changed: Sequence[str]


_ROWS_A_COLUMN = 10

_STYLE = """
:root { --ink: #1c2733; --soft: #5c6b7a; --line: #dfe5ea; --ground: #f5f7f9; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
header { border-bottom: 3px solid var(--accent); padding-bottom: .75rem; margin-bottom: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0; line-height: 1.25; }
header p { margin: .25rem 0 0; color: var(--soft); }
h2 { font-size: 1.2rem; margin: 0 0 .25rem; }
section { background: #fff; border: 1px solid var(--line); border-radius: 8px;
  padding: 1.1rem 1.25rem; margin-bottom: 1.25rem; }
section > p { color: var(--soft); margin: .25rem 0 .75rem; max-width: 52rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: .75rem;
  margin-bottom: 1.25rem; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .85rem; }
.card small { display: block; color: var(--soft); }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.plots img { flex: 1 1 320px; min-width: 0; max-width: 100%; height: auto; }
img.wide { display: block; max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child, table.words td { text-align: left; }
table.words td { white-space: normal; overflow-wrap: anywhere; }
caption { text-align: left; font-weight: 600; padding: .5rem 0; }
.tables { display: flex; flex-wrap: wrap; gap: 2.5rem; }
.warning { border-left: 4px solid #d55e00; }
summary { cursor: pointer; color: var(--accent); margin-top: .5rem; }
footer { color: var(--soft); font-size: .85rem; }
@media print { body { background: #fff; } section, .card { break-inside: avoid; } }
"""


def page(content: Page) -> str:
    """The page as HTML."""
    by_name = {picture.name: picture for picture in content.pictures}
    outcome = content.outcome
    parts = [
        f"<header><h1>{_text(content.title)}</h1><p>{_text(content.subtitle)}</p></header>",
        *_warnings(outcome.warnings),
        _cards(outcome),
        *_course(content, by_name),
        *_curves(outcome, by_name),
        *_strata(outcome, by_name),
        *_attention(outcome.attention, by_name),
        *_figures(outcome),
        *_options(content),
        "<footer>Written by Lookback. The same figures for programs: metrics.json beside this "
        "page.</footer>",
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_text(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(content.title)}</title>\n<style>{_STYLE}</style>\n</head>",
            "<body><main>",
            *parts,
            "</main></body>\n</html>\n",
        ]
    )


def _warnings(warnings: Sequence[str]) -> Iterable[str]:
    if warnings:
        items = "".join(f"<li>{_text(warning)}</li>" for warning in warnings)
        yield f'<section class="warning"><h2>What to know of it</h2><ul>{items}</ul></section>'


def _cards(outcome: Outcome) -> str:
    """The metrics of the run, large."""
    cards = []
    for name, value in outcome.summary.items():
        if metric_of(name) is None or not isinstance(value, int | float):
            continue
        chance = outcome.baselines.get(name)
        beside = "" if chance is None else f"<small>popularity: {_number(chance)}</small>"
        cards.append(
            f'<div class="card"><span>{_text(words_of(name))}</span><b>{_number(value)}</b>'
            f"{beside}</div>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _course(content: Page, pictures: Mapping[str, Picture]) -> Iterable[str]:
    drawn = pictures.get("learning_curve") or pictures.get("evaluation")
    if drawn is None:
        return
    title = "Training" if drawn.name == "learning_curve" else "Evaluation"
    body = _image(drawn, wide=True)
    names = list(dict.fromkeys(name for epoch in content.epochs for name in epoch))
    shown = [name for name in names if name == "epoch" or metric_of(name) is not None]
    if len(content.epochs) > 1 and len(shown) > 1:
        rows = [
            [int(epoch["epoch"]) + 1, *(epoch.get(name) for name in shown[1:])]
            for epoch in content.epochs
        ]
        table = _table([words_of(name) for name in shown], rows)
        body += f"<details><summary>Every epoch</summary>{table}</details>"
    yield _section(title, "", body)


def _curves(outcome: Outcome, pictures: Mapping[str, Picture]) -> Iterable[str]:
    if not outcome.curves:
        return
    drawn = [pictures[name] for name in ("roc", "precision_recall", "calibration")]
    rows = [
        [
            name,
            found.roc.auc,
            found.precision_recall.average_precision,
            found.precision_recall.share,
            round(float(found.reliability.weight.sum())),
        ]
        for name, found in outcome.curves.items()
    ]
    table = _table(["", "AUC", "average precision", "share of positives", "rows"], rows)
    bins = "".join(
        _table(
            ["mean probability", "share of positives", "rows"],
            zip(
                curve.predicted.tolist(),
                curve.observed.tolist(),
                np.rint(curve.weight).astype(int).tolist(),
                strict=True,
            ),
            caption=f"Calibration, {name}",
        )
        for name, curve in ((n, found.reliability) for n, found in outcome.curves.items())
    )
    yield _section(
        "Ranking and calibration",
        "Where negatives are drawn for the evaluation, probabilities and precision say how a "
        "positive is told from such draws, and are no rates of clicks.",
        f'<div class="plots">{"".join(map(_image, drawn))}</div>{table}'
        f'<details><summary>Bins of the calibration</summary><div class="tables">{bins}</div>'
        "</details>",
    )


def _strata(outcome: Outcome, pictures: Mapping[str, Picture]) -> Iterable[str]:
    if "strata" not in pictures:
        return
    tables = "".join(
        _table(
            ["", "rows", "positives", "AUC"],
            [[_bounds(s), s.rows, s.positives, s.auc] for s in found],
            caption=f"{name}, {STRATA_TITLES[by]}",
        )
        for name, strata in outcome.strata.items()
        for by, found in strata.items()
    )
    yield _section(
        "For whom, and for what",
        "Rows in strata of about equal count; the AUC of each is that of its rows alone.",
        f"{_image(pictures['strata'], wide=True)}"
        f'<details><summary>Strata</summary><div class="tables">{tables}</div></details>',
    )


def _attention(found: AttentionFound | None, pictures: Mapping[str, Picture]) -> Iterable[str]:
    if found is None or "attention" not in pictures:
        return
    finds = "the search finds and attention weighs" if found.searched else "attention weighs"
    text = (
        f"Of {found.candidates:,} positive candidates of the {found.split} split, the events of "
        f"the history that {finds}, beside all events, which a model that does not choose would "
        "take."
    )
    if found.same_category is not None:
        with np.errstate(invalid="ignore"):
            same = found.same_category / found.recency.sum(-1)
        shown = {"all events": EVENTS, "found": FOUND, "attention": WEIGHT}
        if not found.searched:
            del shown["found"]
        told = ", ".join(f"{100 * same[row]:.1f} % of {name}" for name, row in shown.items())
        text += f" Of the candidate's own {found.category} are {told}."
    yield _section("What it attends to", text, _image(pictures["attention"], wide=True))


def _figures(outcome: Outcome) -> Iterable[str]:
    rows = [[name, value] for name, value in outcome.summary.items()]
    tables = [
        _table(["figure", "value"], rows[begin : begin + _ROWS_A_COLUMN])
        for begin in range(0, len(rows), _ROWS_A_COLUMN)
    ]
    if tables:
        yield _section("All figures", "", f'<div class="tables">{"".join(tables)}</div>')


def _options(content: Page) -> Iterable[str]:
    if not content.options:
        return
    every = [[name, _words(value)] for name, value in content.options.items()]
    changed = [row for row in every if row[0] in content.changed]
    table = _table(["option", "value"], changed, "words") if changed else ""
    yield _section(
        "Options",
        "Those that are not at the model's defaults; config.yaml beside this report has all.",
        f"{table}<details><summary>All options</summary>"
        f"{_table(['option', 'value'], every, 'words')}</details>",
    )


def _section(title: str, said: str, body: str) -> str:
    words = f"<p>{_text(said)}</p>" if said else ""
    return f"<section><h2>{_text(title)}</h2>{words}{body}</section>"


def _image(picture: Picture, wide: bool = False) -> str:
    kind = ' class="wide"' if wide else ""
    return f'<img{kind} alt="{_text(picture.alt)}" src="{picture.address}">'


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "", caption: str = ""
) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows
    )
    above = f"<caption>{_text(caption)}</caption>" if caption else ""
    named = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll"><table{named}>{above}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _text("none" if value is None else value)
    return _number(value)


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "none"
    if abs(value) >= 1000:
        return f"{value:,.1f}"
    return f"{value:.4f}" if abs(value) >= 1e-3 else f"{value:.4g}"


def _bounds(stratum: Stratum) -> str:
    low, high = f"{stratum.low:,}", f"{stratum.high:,}"
    return low if low == high else f"{low} to {high}"


def _words(value: Any) -> str:
    """An option's value as it is written on a command line."""
    if isinstance(value, list | tuple):
        return ",".join(map(_words, value))
    return "none" if value is None else str(value)


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)
