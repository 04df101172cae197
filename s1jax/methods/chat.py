"""A chat in the terminal: what is typed is a turn or a command, what is answered is shown while it is written."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

from s1jax import control as controls
from s1jax.config import BadInput
from s1jax.methods.config import ModelRun
from s1jax.methods.router import answer_text
from s1jax.methods.session import Session
from s1jax.methods.stream import Stream
from s1jax.methods.task import Ask, Job, Turn
from s1jax.records import Completion, question_id
from s1jax.text.chat import system_turn

HELP = """\
/budget N   at most N tokens of thinking; /budget off for no limit
/ignore N   the first N ends of thinking are ignored
/new        forget what was said
/help       these lines
/quit       end the chat, as Ctrl-D does; Ctrl-C stops an answer"""
# Command -> the field of a control that it sets, and what `off` sets.
FIELDS = {"/budget": ("thinking_token_budget", None), "/ignore": ("thinking_n_ignore", 0)}


def is_possible() -> bool:
    """Somebody sits at a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def run(config: ModelRun, session: Session) -> None:
    """Chat until the end of the input. Raises BadInput for what a chat cannot have."""
    if config.out:
        raise BadInput(f"out={config.out}: a chat is written nowhere; leave it out, or give prompt= or prompts=")
    if config.method.kind != "single" or config.sampling.n != 1:
        raise BadInput(
            f"method.kind={config.method.kind}, sampling.n={config.sampling.n}: a chat has one answer to each turn; "
            "leave them out, or give prompt="
        )
    with contextlib.suppress(ImportError):  # editing and history of lines, where Python has them
        import readline  # noqa: F401
    Chat(config, session, Console(highlight=False)).loop(lambda: input("> "))


class Chat:
    """What was said, and under which control the next turn is answered.

    Attributes:
      messages: the chat so far: answers without their thinking.
      control: config of the next turn's control.
    """

    def __init__(self, config: ModelRun, session: Session, console: Console) -> None:
        self._config, self._session, self._console = config, session, console
        self.control = config.control
        self.messages: list[Turn] = []
        self._forget()

    def loop(self, read: Callable[[], str]) -> None:
        """Take lines until there are no more (EOFError), `/quit`, or Ctrl-C while one is typed."""
        self._say(f"{self._config.model}, {self._label()}; /help lists the commands, Ctrl-D ends")
        while True:
            try:
                line = read().strip()
            except (EOFError, KeyboardInterrupt):
                self._console.print()
                return
            if line == "/quit":
                return
            try:
                if line.startswith("/"):
                    self._obey(line)
                elif line:
                    self.answer(line)
            except BadInput as error:
                self._say(str(error))
            except KeyboardInterrupt:
                self._say("\n[stopped; this turn is forgotten]")

    def answer(self, text: str) -> None:
        """Answer one turn of the user; a turn that is refused or stopped is as if it had not been typed."""
        asked = [*self.messages, {"role": "user", "content": text}]
        job = self._job(asked, self.control)
        self._session.check([job])
        stream = Stream(self._session.tokenizer, job.control, self._console)
        done: list[Completion] = []

        def on_done(_: Job, __: Ask, completion: Completion) -> None:
            done.append(completion)
            stream.finish(completion)

        self._session.run([job], on_done, on_progress=stream.show)
        said = answer_text(done[0], self._session.tokenizer, job.control, job.sampling.stop)
        for token in self._session.tokenizer.eos_ids:
            said = said.removesuffix(self._session.tokenizer.decode([token]))
        self.messages = [*asked, {"role": "assistant", "content": said.strip()}]

    def _obey(self, line: str) -> None:
        command, *values = line.split()
        if command == "/help" and not values:
            self._say(HELP)
        elif command == "/new" and not values:
            self._forget()
            self._say("[a new chat]")
        elif command in FIELDS and len(values) == 1:
            self._set(command, values[0])
            self._say(f"[{self._label()}]")
        else:
            raise BadInput(f"{line!r} is no command; /budget N, /ignore N, /new, /help and /quit are")

    def _set(self, command: str, value: str) -> None:
        field, off = FIELDS[command]
        if field not in {each.name for each in dataclasses.fields(self.control)}:
            raise BadInput(f"{command} sets control.{field}, which control.kind={self.control.kind} lacks")
        if value != "off" and not value.isdecimal():
            raise BadInput(f"{command} {value}: give a whole number, or off")
        changed = dataclasses.replace(self.control, **{field: off if value == "off" else int(value)})
        self._session.check([self._job([*self.messages, {"role": "user", "content": "?"}], changed)])
        self.control = changed

    def _job(self, messages: list[Turn], control: Any) -> Job:
        id = question_id("\n".join(turn["content"] for turn in messages))
        return self._session.job(id, messages, control, self._config.sampling, self._config.method)

    def _forget(self) -> None:
        self.messages = list(system_turn(self._config.system))

    def _label(self) -> str:
        return controls.of(self.control).label(self.control)

    def _say(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False, soft_wrap=True)
