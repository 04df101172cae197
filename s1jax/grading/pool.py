"""math-verify in worker processes under a hard limit: what does not end is undecided, and its worker is replaced.

math-verify limits itself with SIGALRM, which works in a main thread only and cannot stop a long big-integer operation;
here its own limits are off and the worker is killed. The limit is on processor time: what else the machine does is no
matter. A comparison that reaches it is tried again with four times as much, and is then undecided, not unequal, so no
verdict depends on the processor. A worker is a fresh interpreter that imports nothing of the program that asks (no JAX,
no main module), neither forked nor spawned by `multiprocessing`.
"""

import contextlib
import dataclasses
import logging
import multiprocessing.connection
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from s1jax.grading.equality import same
from s1jax.grading.grade import Equal, Verdict, grade, group

_START_SECONDS = 120.0
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\u00b0|\\degree)")
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from s1jax.grading.pool import serve; serve(*sys.argv[2:])"
_WALL = 20  # times the limit: where a process waits and spends no processor time
_OUT_OF_TIME, _OUT_OF_MEMORY = "time", "memory"
_REMEMBERED = 20_000  # comparisons
_AGAIN = 4  # times the limit, for a second try


class Grader:
    """Grades answer segments, with math-verify for what strings and exact rationals leave open.

    Args:
      processes: workers; they start (about a second each) when first needed.
      seconds: processor time of one comparison, in whole seconds (a second more may pass); four times that when it is
        tried again.
      memory_gib: address space of a worker; a comparison that needs more is undecided.
    """

    def __init__(self, processes: int = 1, seconds: int = 5, memory_gib: float = 4.0) -> None:
        self._limits = (processes, seconds, memory_gib)
        self._workers: list[_Worker] = []
        self._known: dict[tuple[str, str], bool | None] = {}  # samples of a question often agree
        self._lock = threading.Lock()

    def grade(self, text: str, gold: str, kind: str) -> Verdict:
        """Grade one answer segment; see `s1jax.grading.grade.grade`."""
        return self.map([(text, gold, kind)])[0]

    def map(self, items: Sequence[tuple[str, str, str]]) -> list[Verdict]:
        """Grade (answer segment, gold, kind) triples; verdicts come in the same order. Never raises for any text."""
        asked: list[list[tuple[str, str]]] = [[] for _ in items]

        def ask(questions: list[tuple[str, str]]) -> Equal:
            return lambda gold, found: bool(questions.append((gold, found)))

        verdicts = [grade(*item, ask(questions)) for item, questions in zip(items, asked, strict=True)]
        open_items = [i for i, questions in enumerate(asked) if questions]
        answers = self.equal([asked[i][0] for i in open_items])
        for i, answer in zip(open_items, answers, strict=True):
            verdicts[i] = dataclasses.replace(verdicts[i], correct=answer is True, undecided=answer is None)
        return verdicts

    def equivalent(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Equality of (gold, answer) pairs: strings and rationals first, math-verify for what they leave open."""
        known = [same(*pair) for pair in pairs]
        rest = [i for i, verdict in enumerate(known) if verdict is None]
        asked = dict(zip(rest, self.equal([pairs[i] for i in rest]), strict=True))
        return [asked.get(i, verdict) for i, verdict in enumerate(known)]

    def group(self, answers: Sequence[str | None], kind: str) -> list[int | None]:
        """Groups of equal answers; see `s1jax.grading.grade.group`."""
        return group(answers, kind, lambda gold, answer: self.equal([(gold, answer)])[0])

    def equal(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """math-verify's opinion of (gold, answer) pairs; None where it hangs or runs out of memory."""
        with self._lock:
            new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
            results = dict(zip(new, self._equal(new, self._limits[1]), strict=True))
            again = [pair for pair, result in results.items() if result == _OUT_OF_TIME]
            results |= zip(again, self._equal(again, _AGAIN * self._limits[1]), strict=True)
            decided = {pair: result if isinstance(result, bool) else None for pair, result in results.items()}
            answers = [self._known[pair] if pair in self._known else decided[pair] for pair in pairs]
            if len(self._known) > _REMEMBERED:
                self._known.clear()
            self._known.update(decided)
        return answers

    def _equal(self, pairs: Sequence[tuple[str, str]], seconds: int) -> "list[bool | str]":
        processes, _, memory_gib = self._limits
        results: list[bool | str] = [False] * len(pairs)
        waiting = list(range(len(pairs)))[::-1]
        idle, busy = self._workers[:], {}
        while waiting or busy:
            while waiting and len(busy) < processes:
                if not idle:
                    self._workers.append(_Worker(memory_gib))
                    idle.append(self._workers[-1])
                worker, index = idle.pop(), waiting.pop()
                worker.send(pairs[index], seconds)
                busy[worker] = index
            for worker, answer in _next_answers(list(busy)):
                results[busy.pop(worker)] = answer
                if answer == _OUT_OF_TIME:
                    self._workers.remove(worker)
                else:
                    idle.append(worker)
        return results

    def close(self) -> None:
        """Stop the workers. They also stop when this process ends."""
        with self._lock:
            while self._workers:
                self._workers.pop().stop()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    def __init__(self, memory_gib: float) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            folder = str(pathlib.Path(__file__).parent.parent.parent)
            arguments = (folder, str(theirs.fileno()), str(memory_gib))
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self.pipe = Connection(ours.detach())
        self._deadline = [0.0]
        started = False
        with contextlib.suppress(EOFError, ConnectionError):
            started = self.pipe.poll(_START_SECONDS) and self.pipe.recv() == "ready"
        if not started:
            self.stop()
            raise RuntimeError("a math-verify worker did not start; run `python -c 'import math_verify'` to see why")

    def send(self, pair: tuple[str, str], seconds: int) -> None:
        self._deadline[0] = time.monotonic() + _WALL * seconds
        with contextlib.suppress(ConnectionError):  # a dead worker shows when its answer is read
            self.pipe.send((*pair, seconds))

    def seconds_left(self) -> float:
        return self._deadline[0] - time.monotonic()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self.pipe.close()


def _next_answers(workers: list[_Worker]) -> list[tuple[_Worker, bool | str]]:
    """Wait for the first answers or the first deadline; a worker that died or was killed is out of time."""
    timeout = max(0.0, min(worker.seconds_left() for worker in workers))
    ready = multiprocessing.connection.wait([worker.pipe for worker in workers], timeout)
    answers: list[tuple[_Worker, bool | str]] = []
    for worker in workers:
        if worker.pipe in ready:
            try:
                answers.append((worker, worker.pipe.recv()))
                continue
            except (EOFError, ConnectionError):
                pass
        elif worker.seconds_left() > 0:
            continue
        worker.stop()
        answers.append((worker, _OUT_OF_TIME))
    return answers


def serve(descriptor: str, memory_gib: str) -> None:
    """A worker's life: announce itself, then answer (gold, answer, seconds) until the connection closes."""
    pipe = Connection(int(descriptor))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the parent
    logging.disable(logging.CRITICAL)
    _limit("RLIMIT_AS", int(float(memory_gib) * 2**30))
    _limit("RLIMIT_CORE", 0)
    import math_verify  # noqa: F401  (a second of imports, and only here)

    pipe.send("ready")
    while True:
        try:
            gold, answer, seconds = pipe.recv()
        except (EOFError, ConnectionError):
            return
        _limit("RLIMIT_CPU", int(time.process_time()) + 1 + seconds)
        try:
            verdict: bool | str = bool(math_equal(gold, answer))
        except MemoryError:
            verdict = _OUT_OF_MEMORY
        except Exception:  # whatever sympy or the parser trips over: it is not equal
            verdict = False
        pipe.send(verdict)


def _limit(name: str, value: int) -> None:
    """Lower this process's own limit; the system kills a process that spends more processor time."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system has it
        import resource

        resource.setrlimit(getattr(resource, name), (value, resource.getrlimit(getattr(resource, name))[1]))


def math_equal(gold: str, answer: str) -> bool:
    """Mathematical equality by math-verify on the extracted answer alone. May hang: no time limit.

    The gold stands as `$gold$`, the answer in a box of its own, so nothing around them is taken for an answer.
    Relations may be compared with intervals. Only this way round: the other takes `a=0` for `0`, `(3,1)` for `{1,3}`.
    """
    from math_verify import parse, verify

    gold, answer = _readable(gold), _readable(answer)
    golds = parse(f"${gold}$", parsing_timeout=None)  # type: ignore[arg-type]
    answers = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)  # type: ignore[arg-type]
    return verify(golds, answers, timeout_seconds=None, allow_set_relation_comp=True) or _same_set(gold, answer)


def _readable(answer: str) -> str:
    """Spellings that math-verify reads wrongly: `\\mathrm{e}` in a fraction ends its match, an ordinal is a power, the
    sine of 60 degrees is that of 60."""
    answer = answer.strip().strip("$")
    if re.search(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-z])", answer):
        answer = _DEGREES.sub(r"(\1\\pi/180)", answer)
    if re.fullmatch(r"\d{3}(?:,\d{3})+", answer):
        answer = answer.replace(",", ", ")  # a list, see `s1jax.grading.equality.same`
    answer = re.sub(r"\\math(?:rm|bf|it)\s*\{([A-Za-z]|-?[\d.]+)\}", r"\1", answer)
    return re.sub(r"\^\s*\{?\s*\\(?:text|mathrm|mbox)\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}?", "", answer)


def _same_set(gold: str, answer: str) -> bool:
    """`x<2 \\text{ or } x>3` against a union of intervals, which math-verify does not compare."""
    from math_verify import parse
    from sympy import Set, Union

    def as_set(text: str) -> Any:
        parts = re.split(r"\\text\s*\{\s*or\s*\}|\bor\b|\\lor\b|\\vee\b", text)
        values = [parse(f"${part.strip()}$", parsing_timeout=None)[0] for part in parts]  # type: ignore[arg-type]
        return Union(*(value if isinstance(value, Set) else value.as_set() for value in values))

    if not re.search(r"\bor\b|\\lor|\\vee", gold + answer):
        return False
    return as_set(gold) == as_set(answer)
