"""The verb `quickstart`: the whole road on a tiny model, through the code of any other run; only the configs differ.

out/pool.jsonl, held_out.jsonl   generated questions
out/tokenizer/                   made from the task's texts
out/curate/                      rows.jsonl, receipt.json
out/train/                       metrics, checkpoints, hf/
out/orbax/, out/hf/              the model converted there and back
out/eval/                        samples and report of every setting
out/report/                      scaling.json, scaling.png, index.html
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from curation.decontaminate import Against, DecontaminateConfig
from curation.diversity import DiversityConfig
from curation.run import CurateRun
from curation.run import run as curate
from curation.sources import SourceConfig
from s1jax.checkpoint.convert import ConvertRun
from s1jax.checkpoint.convert import run as convert
from s1jax.config import Positive, Seed
from s1jax.control.budget.config import BudgetConfig
from s1jax.engine.config import EngineConfig
from s1jax.eval.report import ReportRun
from s1jax.eval.report import run as report
from s1jax.eval.run import EvalRun, VoteSweep
from s1jax.eval.run import run as evaluate
from s1jax.models.decoder import DecoderConfig
from s1jax.parallel.mesh import MeshConfig
from s1jax.quickstart import task
from s1jax.quickstart.tokenizer import train_tokenizer
from s1jax.records import write_json, write_jsonl
from s1jax.runs.folder import entered
from s1jax.train.data import DataConfig
from s1jax.train.loss import LossConfig
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.packing import PackingConfig
from s1jax.train.run import RandomModel, SaveConfig, TrainRun
from s1jax.train.run import run as train

ONE_DEVICE = MeshConfig(data=1, fsdp=1, context=1, tensor=1)


@dataclasses.dataclass(frozen=True)
class QuickstartRun:
    """The road end to end.

    Attributes:
      seed: of the questions, the weights, the order of examples and the votes.
      steps: optimizer steps; None: what the task needs.
      pool: rows before curation; None: the task's number.
      held_out: questions of the evaluation; None: the task's number.
      out: where everything is written.
    """

    seed: Seed = 0
    steps: Positive | None = None
    pool: Positive | None = None
    held_out: Positive | None = None
    out: str = ""


class Stages:
    """Announces stages and remembers how long each took."""

    def __init__(self, total: int) -> None:
        self.seconds: dict[str, float] = {}
        self._total = total
        self._console = Console(stderr=True)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done in this context."""
        self._console.rule(f"[bold]{len(self.seconds) + 1}/{self._total} {name}", align="left")
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def show(self) -> None:
        """Print the seconds of each stage."""
        table = Table("stage", "seconds")
        for name, spent in self.seconds.items():
            table.add_row(name, f"{spent:.1f}")
        table.add_row("all", f"{sum(self.seconds.values()):.1f}")
        self._console.print(table)


def run(config: QuickstartRun) -> pathlib.Path:
    """Curate, train, convert, evaluate, report. A second start goes on where the first stopped.

    Returns: `out/report`.
    """
    with entered(config, device="cpu") as out:
        return _stages(config, out)


def _stages(config: QuickstartRun, out: pathlib.Path) -> pathlib.Path:
    stages = Stages(6)
    with stages.stage("questions and tokenizer"):
        _prepare(config, out)
    with stages.stage("curate"):
        curate(curate_config(config, out), solver=task.solver)
    with stages.stage("train"):
        train(train_config(config, out))
    with stages.stage("convert"):
        _convert(out)
    with stages.stage("evaluate"):
        evaluate(eval_config(config, out))
    with stages.stage("report"):
        folder = report(ReportRun(reports=(str(out / "eval"),), out=str(out / "report")))
    write_json(out / "seconds.json", {"format": "s1jax.seconds/1", "seconds": stages.seconds})
    stages.show()
    _show(folder)
    return folder


def _prepare(config: QuickstartRun, out: pathlib.Path) -> None:
    recipe = task.RECIPE
    if (out / "tokenizer" / "chat_template.jinja").is_file():
        return  # it is written last
    held_out = task.questions(
        recipe.held_out_seed + 1000 * config.seed, config.held_out or recipe.held_out, held_out=True
    )
    pool = task.pool(recipe.pool_seed + 1000 * config.seed, config.pool or recipe.pool, held_out)
    write_jsonl(out / "held_out.jsonl", ({"id": q.id, "question": q.text, "answer": q.answer} for q in held_out))
    write_jsonl(out / "pool.jsonl", pool)
    train_tokenizer(task.corpus(recipe.pool_seed, 3000)).save(out / "tokenizer")


def curate_config(config: QuickstartRun, out: pathlib.Path) -> CurateRun:
    """The generated pool through the stages that real sources go through."""
    held_out = str(out / "held_out.jsonl")
    return CurateRun(
        sources=(SourceConfig(kind="rows", path=str(out / "pool.jsonl"), answer_kind="integer"),),
        stages=("deduplicate", "quality", "difficulty", "decontaminate", "diversity"),
        # Questions share long runs of words by design (letters of short words), so only equal ones are contamination.
        decontaminate=DecontaminateConfig(
            against=(Against("held out", held_out),), words=None, letters=True, symbols=None
        ),
        diversity=DiversityConfig(total=None),
        seed=config.seed,
        out=str(out / "curate"),
    )


def train_config(config: QuickstartRun, out: pathlib.Path) -> TrainRun:
    """Supervised fine-tuning from random weights, in rows of one length."""
    recipe = task.RECIPE
    vocabulary = json.loads((out / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    model = DecoderConfig(
        family="qwen2",
        D=recipe.D,
        K=recipe.K,
        G=recipe.G,
        H=recipe.H,
        F=recipe.F,
        V=len(vocabulary),
        L=recipe.L,
        rope_theta=recipe.rope_theta,
        max_position=256,
        tied=True,
        qkv_bias=True,
    )
    return TrainRun(
        model=RandomModel(model),
        data=DataConfig(rows=str(out / "curate" / "rows.jsonl"), block=recipe.row_length, answer_prefix=None),
        tokenizer=str(out / "tokenizer"),
        steps=config.steps or recipe.steps,
        global_batch=recipe.batch,
        micro_batch=recipe.batch,
        packing=PackingConfig(enabled=False, shapes=1, multiple=1),
        loss=LossConfig(norm="token" if recipe.norm == "token" else "example", chunk=0),
        optimizer=OptimizerConfig(
            learning_rate=recipe.learning_rate,
            warmup_steps=min(recipe.warmup_steps, (config.steps or recipe.steps) // 2),
            b2=recipe.b2,
            weight_decay=recipe.weight_decay,
        ),
        dtype="float32",
        remat="none",
        seed=config.seed,
        mesh=ONE_DEVICE,
        save=SaveConfig(every=400, keep=1, dtype="float32"),
        out=str(out / "train"),
    )


def _convert(out: pathlib.Path) -> None:
    convert(ConvertRun(source=str(out / "train" / "hf"), target=str(out / "orbax"), to="orbax", dtype="float32"))
    convert(ConvertRun(source=str(out / "orbax"), target=str(out / "hf"), to="hf", dtype="float32"))


def eval_config(config: QuickstartRun, out: pathlib.Path) -> EvalRun:
    """Budgets, ignored ends and votes on the held-out questions, all as rows of one engine."""
    recipe = task.RECIPE
    return EvalRun(
        model=str(out / "hf"),
        benchmark=str(out / "held_out.jsonl"),
        grader="integer",
        control=BudgetConfig(answer_token_budget=8),
        budgets=recipe.budgets,
        ignores=recipe.n_ignore,
        votes=VoteSweep(n=max(recipe.votes), temperature=recipe.temperature),
        engine=EngineConfig(slots=64, window=16, max_length=128, prefill_rows=64, prefill_smallest=64),
        seed=config.seed,
        dtype="float32",
        out=str(out / "eval"),
    )


def _show(folder: pathlib.Path) -> None:
    scaling = json.loads((folder / "scaling.json").read_text(encoding="utf-8"))
    console = Console()
    for name, unit in (("control", ""), ("scaling", " points per doubling"), ("performance", "")):
        figure = scaling[name]
        if figure["value"] is None:
            console.print(f"{name.capitalize():12} none: {figure.get('reason')}")
        else:
            console.print(
                f"{name.capitalize():12} {figure['value']:.3f}{unit}  [{figure['low']:.3f}, {figure['high']:.3f}]"
            )
    console.print(f"report: {folder / 'index.html'}")
