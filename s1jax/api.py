"""The Python API: a model that completes questions, and the verbs of the command line as functions."""

import dataclasses
import difflib
import json
import pathlib
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from s1jax import __main__ as command_line
from s1jax import config as configuration
from s1jax import control as controls
from s1jax.checkpoint import hf
from s1jax.config import BadInput
from s1jax.engine.config import EngineConfig
from s1jax.engine.engine import Engine
from s1jax.engine.requests import Listener
from s1jax.engine.sampling import SamplingConfig
from s1jax.methods.config import ModelRun
from s1jax.methods.prompts import override, override_control, prompt_of
from s1jax.methods.router import answer_text, request_of
from s1jax.methods.session import Session
from s1jax.methods.single import SingleConfig
from s1jax.methods.stream import Piece, Pieces
from s1jax.methods.task import Ask, Job
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.records import Completion
from s1jax.runs import places
from s1jax.text.tokens import Tokenizer

QuestionInput = str | Mapping[str, Any]
ROUND_TO = 128  # lengths of engines are multiples of it, so that alike calls share one


def load(
    folder_or_hub_id: str,
    *,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    tokenizer: str | None = None,
    chat_template: str | None = None,
    system: str | None = None,
    tensor: int = 1,
    engine: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> "LoadedModel":
    """A model from a Hugging Face folder or a hub id, ready to complete.

    Args:
      folder_or_hub_id: with safetensors and a config of a known family.
      dtype: of the computation.
      tokenizer: a folder or a hub id; None: the model's.
      chat_template: a Jinja file; None: the tokenizer's.
      system: a system turn for every question; None: what the template puts.
      tensor: devices that hold the model together.
      engine: fields of `EngineConfig`, such as `{"weights": "int8"}`; slots and length are chosen from what is asked.
      seed: of all draws.

    Raises:
      BadInput: no such model, or one that cannot be read.
    """
    if dtype not in ("float32", "bfloat16"):
        raise BadInput(f"dtype={dtype!r}; give float32 or bfloat16")
    config = ModelRun(
        model=folder_or_hub_id,
        dtype=dtype,
        tokenizer=tokenizer,
        chat_template=chat_template,
        system=system,
        seed=seed,
        mesh=MeshConfig(data=1, fsdp=1, tensor=tensor),
        engine=configuration.from_dict(EngineConfig, engine or {}, "engine."),
    )
    command_line.prepare_environment(None)
    return LoadedModel(config)


class LoadedModel:
    """Weights, tokenizer and an engine that is made, or made larger, when it is asked for more.

    Its methods may be called from several threads at once.

    Attributes:
      tokenizer: encodes and decodes.
    """

    def __init__(self, config: ModelRun) -> None:
        """Use `s1jax.load`."""
        self._config = config
        devices = jax.local_devices()
        if not 1 <= config.mesh.tensor <= len(devices):
            raise BadInput(f"tensor={config.mesh.tensor} devices are asked for, there are {len(devices)}; give fewer")
        self._mesh = make_mesh(
            MeshConfig(data=1, fsdp=1, context=1, tensor=config.mesh.tensor), devices[: config.mesh.tensor]
        )
        self._texts = Session(config, lambda *_: [])
        self.tokenizer: Tokenizer = self._texts.tokenizer
        self._weights: Any = hf.load(config.model, mesh=self._mesh, dtype=config.dtype, stacked=False)
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._asked: dict[Any, None] = {}

    def generate(
        self,
        questions: QuestionInput | Sequence[QuestionInput],
        *,
        seed: int | None = None,
        **control_and_sampling: Any,
    ) -> list[Completion]:
        """Complete questions; the rows of all of them run together.

        Args:
          questions: a text, or an object with `question` or `messages` and whatever a row of a prompts file may have;
            one or several.
          seed: of the draws; None: the model's.
          control_and_sampling: fields of a control (`thinking_token_budget=512`, `thinking_n_ignore=2`), of sampling
            (`temperature=0.7`, `n=4`, `max_new_tokens=1000`), or `control={"kind": "free"}`, `sampling={...}`.

        Returns: n completions of each question, in the order asked; fields as in `completions.jsonl`.

        Raises:
          BadInput: an unknown field, or a row that cannot run.
          RowError: rows ended with errors.
        """
        many = [questions] if isinstance(questions, str | Mapping) else questions
        if not isinstance(many, Sequence):
            raise BadInput(f"questions is {many!r} ({type(many).__name__}); give a text, an object, or a list of them")
        jobs = [self._job(question, i, seed, control_and_sampling) for i, question in enumerate(many)]
        session = self._session(jobs)
        found: dict[tuple[str, int], Completion] = {}

        def keep(job: Job, _: Ask, completion: Completion) -> None:
            found[job.setting, completion.sample] = dataclasses.replace(completion, question=job.question)

        session.run(jobs, keep)
        return [found[job.setting, sample] for job in jobs for sample in range(job.n_samples)]

    def stream(
        self, question: QuestionInput, *, seed: int | None = None, **control_and_sampling: Any
    ) -> Iterator[Piece]:
        """Pieces of one completion while it is written: `text`, `is_thinking`, `is_forced`.

        A row that nobody reads any more (the iterator is closed) is cancelled. Arguments as in `generate`, with `n=1`.

        Raises:
          BadInput: as `generate`, before the first piece. RuntimeError: the row ended with an error.
        """
        job = self._job(question, 0, seed, control_and_sampling)
        if job.n_samples != 1:
            raise BadInput(f"sampling.n={job.n_samples}: one completion is streamed; leave n out, or use generate")
        engine = self._engine_for([job])
        ask = Ask("", job.id, 0, job.seed, job.prompt_ids, job.control, job.sampling)
        pieces = Pieces(self.tokenizer, job.control)
        return self._stream(engine, request_of(ask, self.tokenizer, engine.max_length), pieces)

    def _stream(self, engine: Engine, request: Any, pieces: Pieces) -> Iterator[Piece]:
        events: queue.SimpleQueue = queue.SimpleQueue()
        listener = Listener(lambda _, done: events.put(done), None, lambda _, *grown: events.put(grown))
        ticket = engine.submit(request, listener)
        try:
            while True:
                event = events.get()
                if not isinstance(event, Completion):
                    yield from pieces.grown(*event)
                elif event.finish_reason == "error":
                    raise RuntimeError(f"the completion ended with an error: {event.error}")
                else:
                    yield from pieces.ended(event)
                    return
        finally:
            engine.cancel(ticket)

    def score(self, token_ids: Sequence[int]) -> np.ndarray:
        """Log-softmax of the raw logits at each token given those before it: float32, 0 at the first.

        Raises:
          BadInput: no tokens, too many, or one that the tokenizer does not have.
        """
        if isinstance(token_ids, str):
            raise BadInput("score takes tokens, not a text; encode it with model.tokenizer.encode")
        ids = [int(token) if isinstance(token, np.integer) else token for token in token_ids]
        return self._engine_for([], length=len(ids)).score(ids)

    def answer(self, completion: Completion, **control: Any) -> str:
        """The answer segment of a completion, without thinking, headers and EOS; fields as it was made with."""
        config, sampling = self._settings(control)
        text = answer_text(completion, self.tokenizer, config, sampling.stop)
        for token in self.tokenizer.eos_ids:
            text = text.removesuffix(self.tokenizer.decode([token]))
        return text.strip()

    def close(self) -> None:
        """Stop the engine's thread and let go of weights and cache; what still runs ends as cancelled."""
        with self._lock:
            if self._engine is not None:
                self._engine.cancel_all()
                self._engine.retire()
            self._engine, self._weights = None, None

    # ------------------------------------------------------------------------------------------------------- what runs

    def _settings(self, fields: Mapping[str, Any]) -> tuple[Any, SamplingConfig]:
        """Control and sampling of keyword arguments. Raises BadInput for one that neither has."""
        of_sampling = {field.name for field in dataclasses.fields(SamplingConfig)}
        of_control = {field.name for cls in controls.configs().values() for field in dataclasses.fields(cls)} - {"kind"}
        changes: dict[str, dict[str, Any]] = {"control": {}, "sampling": {}}
        for name, value in fields.items():
            if name in changes and isinstance(value, Mapping):
                changes[name] |= value
            elif name == "control" and dataclasses.is_dataclass(value):
                changes[name] |= configuration.to_dict(value)
            elif name in of_sampling or name in of_control:
                changes["sampling" if name in of_sampling else "control"][name] = _plain(value)
            else:
                known = sorted({*of_sampling, *of_control, *changes})
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise BadInput(
                    f"{name}={value!r} is no field of control or sampling; the nearest known one is {near!r}"
                )
        control = override_control(self._config.control, changes["control"], "")
        return control, override(self._config.sampling, changes["sampling"], "")

    def _job(self, question: QuestionInput, number: int, seed: int | None, fields: Mapping[str, Any]) -> Job:
        row, where = {"question": question} if isinstance(question, str) else question, f"question {number + 1}"
        if not isinstance(row, Mapping):
            raise BadInput(f"{where} is {row!r} ({type(row).__name__}); give a text or an object")
        if isinstance(row.get("question"), str) and any("\ud800" <= char <= "\udfff" for char in row["question"]):
            raise BadInput(f"{where} holds half a character (a lone surrogate), which is no text")
        prompt = prompt_of(row, where, self._config.system)
        control, sampling = self._settings(fields)
        control = override_control(control, prompt.control, where)
        sampling = override(sampling, prompt.sampling, where)
        seed = prompt.seed if prompt.seed is not None else seed
        if seed is not None:
            seed = _whole("seed", seed)
        # Two equal questions are two rows of one name, so the place in the list tells them apart.
        job = self._texts.job(prompt.id, prompt.messages, control, sampling, SingleConfig(), seed=seed)
        return dataclasses.replace(job, setting=str(number))

    def _session(self, jobs: Sequence[Job]) -> Session:
        engine = self._engine_for(jobs)
        return Session(self._config, lambda *_: [engine], tokenizer=self.tokenizer, keeps_running=True)

    def _engine_for(self, jobs: Sequence[Job], length: int = 1) -> Engine:
        """The engine, made anew where it has too few slots, too short ones, or lacks a control that is asked for."""
        with self._lock:
            if self._weights is None:
                raise RuntimeError("the model is closed; load it again")
            asked = dict.fromkeys([*self._asked, *(job.control for job in jobs)] or [self._config.control])
            rows = _power(sum(job.n_samples for job in jobs) or 1)
            config = self._sized(jobs, length)
            have = self._engine
            if have is not None and have.failure is not None:
                have = self._engine = None
            is_enough = have is not None and have.n_slots >= min(rows, have.most_slots)
            if (
                have is None
                or not is_enough
                or have.max_length < (config.max_length or 0)
                or len(asked) > len(self._asked)
            ):
                rows = max(rows, have.n_slots if have is not None else 1)
                config = dataclasses.replace(
                    config, max_length=max(config.max_length or 0, have.max_length if have is not None else 0)
                )
                automata = controls.automata(self.tokenizer, self._weights.config.V, list(asked))
                engine = Engine(
                    self._weights,
                    self.tokenizer,
                    config,
                    automata,
                    dtype=self._config.dtype,
                    mesh=self._mesh,
                    most_rows=rows,
                )
                engine.start()
                if self._engine is not None:
                    self._engine.retire()  # its rows end, then its thread
                self._engine, self._asked = engine, asked
                have = engine
            return have

    def _sized(self, jobs: Sequence[Job], length: int) -> EngineConfig:
        """Rows as long as is asked for; as long as the model's positions where nothing bounds a completion."""
        config, most = self._config.engine, self._weights.config.max_position
        if config.max_length is not None:
            return config
        wanted = [
            most if job.sampling.max_new_tokens is None else len(job.prompt_ids) + job.sampling.max_new_tokens
            for job in jobs
        ]
        longest = max([length, 2, *wanted])
        return dataclasses.replace(config, max_length=min(-(-longest // ROUND_TO) * ROUND_TO, most))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return configuration.to_dict(value)
    return list(value) if isinstance(value, tuple) else value


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise BadInput(f"{name} is {value!r} ({type(value).__name__}); give a whole number")
    return int(value)


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


# ---------------------------------------------------------------------------------------------------------------- verbs


def _run(verb: str, config: Any) -> pathlib.Path:
    """Run a verb from its config object, a dict, or a YAML file. Raises BadInput as the command line refuses."""
    if isinstance(config, str | pathlib.Path):
        loaded = command_line.load_config(verb, str(config), [])
    elif isinstance(config, Mapping):
        loaded = command_line.config_of(verb, config)
    else:
        loaded = command_line.with_out(config, verb)
    return places.place(command_line.run_verb(verb, loaded))


def train(config: Any) -> pathlib.Path:
    """Fine-tune (`s1jax train`).

    Args:
      config: a `s1jax.train.run.TrainRun`, a dict of its fields (nested, as in YAML), or the path of a recipe.

    Returns: the folder with the exported model.

    Raises:
      BadInput: what the command line refuses.
    """
    return _run("train", config)


def convert(config: Any) -> pathlib.Path:
    """Convert a checkpoint (`s1jax convert`); the target's folder. Arguments and errors as `train`."""
    return _run("convert", config)


def curate(config: Any) -> pathlib.Path:
    """Make a training set (`s1jax curate`); the folder with `rows.jsonl` and `receipt.json`. As `train`."""
    return _run("curate", config)


def evaluate(config: Any) -> list[dict[str, Any]]:
    """Evaluate (`s1jax eval`); the report of every setting, as in `report.json`. Arguments and errors as `train`."""
    out = _run("eval", config)
    paths = [out / "report.json"] if (out / "report.json").is_file() else sorted(out.glob("*/report.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def plan(config: Any) -> dict[str, Any]:
    """Plan a step for devices that are not here (`s1jax plan`); the content of `plan.json`. As `train`."""
    return json.loads((_run("plan", config) / "plan.json").read_text(encoding="utf-8"))
