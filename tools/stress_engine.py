"""Random callers against an engine: what must hold after any operations in any order from several threads.

    python tools/stress_engine.py operations=10000 threads=4 seed=0 [write=docs/engine_stress.md]

Each thread submits, cancels, pauses, resumes, forks, extends, snapshots, restores and scores, at random, rows of many
controls, samplings and lengths, over an engine of few slots that runs in a thread of its own. The model of what must
hold is small: every row is heard of exactly once; a row that nobody cancelled ends as the same request does alone
(appended tokens included: then as what its own tokens say, position by position); a refused operation changes nothing.
"""

import dataclasses
import pathlib
import random
import sys
import threading
import time
from collections import Counter
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))

from engine_cases import FREE, MAX_LENGTH, S1, engine, near_tie, request, tokenizer

from s1jax.config import BadInput
from s1jax.engine.requests import Listener, Request
from s1jax.records import Completion

CONFIGS = (
    FREE,
    dataclasses.replace(S1, thinking_token_budget=12),
    dataclasses.replace(S1, thinking_n_ignore=2, pause_at=(6, 15)),
    dataclasses.replace(S1, thinking_n_ignore=1, answer_token_budget=5),
    dataclasses.replace(S1, pause_at=(3,), thinking_token_budget=20),
)
PAUSE_SECONDS = 0.03
MOST_LIVE = 9  # about twice the slots: most rows have begun, and some wait
CLASSES = ((2, 32), (1, 64), (1, MAX_LENGTH))


@dataclasses.dataclass
class Watched:
    """One row: what it was asked as, what was done to it, and what was heard of it."""

    request: Request
    is_paused: bool = False
    was_changed: bool = False
    heard: list[Completion] = dataclasses.field(default_factory=list)


class Callers:
    """Threads that do what they like to one engine."""

    def __init__(self, seed: int) -> None:
        self.engine = engine(classes=CLASSES, window=4)
        self.rows: dict[int, Watched] = {}
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._lock, self._seed, self._n = threading.Lock(), seed, 0
        self._changing = threading.Lock()  # of what was done to a row, and the note of it
        self._snapshots: list[tuple[Any, Watched]] = []

    def listener(self, watched: Watched) -> Listener:
        """Hears of one row."""

        def done(_: int, completion: Completion) -> None:
            watched.heard.append(completion)

        def paused(_: int) -> None:
            watched.is_paused = True

        return Listener(done, paused, None)

    def caller(self, number: int, operations: int) -> None:
        """One thread's operations; what may be refused is counted, anything else is a fault."""
        choose = random.Random(self._seed * 1000 + number)
        kinds = ["submit"] * 4 + [
            "cancel",
            "pause",
            "resume",
            "resume",
            "fork",
            "extend",
            "snapshot",
            "restore",
            "score",
        ]
        for _ in range(operations):
            kind = choose.choice(kinds)
            if (
                kind in ("submit", "fork", "restore")
                and sum(not row.heard for row in list(self.rows.values())) >= MOST_LIVE
            ):
                kind = choose.choice(("extend", "snapshot", "resume", "resume", "pause", "cancel"))
            try:
                getattr(self, kind)(choose)
                self.counts[kind] += 1
            except BadInput:
                self.counts[f"{kind} refused"] += 1
            except Exception as error:
                self.faults.append(f"{kind}: {error!r}")

    def submit(self, choose: random.Random) -> None:
        """A new row."""
        with self._lock:
            self._n += 1
            name = f"r{self._n % 40}"  # some requests come again
        n = choose.choice((8, 24, 40, 60))
        config = choose.choice(CONFIGS[: 1 if n < 24 else 5])
        row = request("ab" * choose.randrange(1, 8), config, n=n, id=name, temperature=choose.choice((0.0, 1.0)))
        self.add(row)

    def add(self, row: Request) -> None:
        """Submit and watch it."""
        watched = Watched(row)
        ticket = self.engine.submit(row, self.listener(watched))
        with self._lock:
            self.rows[ticket] = watched

    def some(self, choose: random.Random, *, paused: bool = False) -> tuple[int, Watched]:
        """A row that has not been heard of, paused by preference if asked."""
        with self._lock:
            live = [(ticket, row) for ticket, row in self.rows.items() if not row.heard]
        waiting = [pair for pair in live if pair[1].is_paused]
        if not live:
            raise BadInput("there are no rows")
        return choose.choice(waiting if paused and waiting else live)

    def cancel(self, choose: random.Random) -> None:
        """Some row."""
        self.engine.cancel(self.some(choose)[0])

    def pause(self, choose: random.Random) -> None:
        """Some row."""
        self.engine.pause(self.some(choose)[0])

    def resume(self, choose: random.Random) -> None:
        """Some row, paused or not."""
        ticket, watched = self.some(choose, paused=True)
        watched.is_paused = False
        self.engine.resume(ticket)

    def fork(self, choose: random.Random) -> None:
        """Another sample of some row, from where it is."""
        ticket, watched = self.some(choose, paused=True)
        is_other = choose.random() < 0.5  # else the same row once more, which ends as the first does
        request_ = dataclasses.replace(watched.request, sample=watched.request.sample + is_other)
        with self._changing:
            copy = Watched(request_, was_changed=is_other or watched.was_changed)
            [forked] = self.engine.fork(ticket, [copy.request], self.listener(copy))
        with self._lock:
            self.rows[forked] = copy

    def extend(self, choose: random.Random) -> None:
        """Append a few tokens, or too many, to some row."""
        ticket, watched = self.some(choose, paused=True)
        with self._changing:
            self.engine.extend(ticket, tokenizer().encode("so " * choose.choice((1, 2, 30))))
            watched.was_changed = True

    def snapshot(self, choose: random.Random) -> None:
        """Of some row."""
        ticket, watched = self.some(choose, paused=True)
        with self._changing:
            snapshot = self.engine.snapshot(ticket)
            copy = Watched(watched.request, was_changed=watched.was_changed)
        with self._lock:
            self._snapshots = [*self._snapshots[-5:], (snapshot, copy)]

    def restore(self, choose: random.Random) -> None:
        """Some snapshot, as it was."""
        with self._lock:
            snapshot, origin = choose.choice(self._snapshots) if self._snapshots else (None, None)
        if snapshot is None or origin is None:
            raise BadInput("there are no snapshots")
        copy = Watched(origin.request, was_changed=origin.was_changed)
        ticket = self.engine.restore(snapshot, None, self.listener(copy))
        with self._lock:
            self.rows[ticket] = copy

    def score(self, choose: random.Random) -> None:
        """Some tokens, or none."""
        self.engine.score([1, 2, 3][: choose.randrange(4)])

    def finish(self, seconds: float) -> None:
        """Let every row go on until all have been heard of."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with self._lock:
                live = [(ticket, row) for ticket, row in self.rows.items() if not row.heard]
            if not live:
                return
            for ticket, _ in live:
                try:
                    self.engine.resume(ticket)
                except BadInput:
                    self.counts["resume at the end refused"] += 1
            time.sleep(0.05)
        self.faults.append(f"{len(live)} rows were never heard of")

    def check(self) -> None:
        """Compare every row that nobody cancelled with what it is alone."""
        alone: dict[Request, Completion] = {}
        self.engine.stop()
        for ticket, watched in self.rows.items():
            if len(watched.heard) != 1:
                self.faults.append(f"row {ticket} was heard of {len(watched.heard)} times")
                continue
            [done] = watched.heard
            self.counts[f"ended: {done.finish_reason}"] += 1
            if done.finish_reason == "error":
                self.faults.append(f"row {ticket}: {done.error}")
            elif done.finish_reason == "cancelled" or watched.was_changed:
                self.check_limits(ticket, watched.request, done)
            else:
                plain = dataclasses.replace(watched.request, control=_without_pauses(watched.request.control))
                if plain not in alone:
                    self.engine.submit(plain)
                    [alone[plain]] = self.engine.run()
                self.counts["compared with the row alone"] += 1
                if done != alone[plain] and not _is_near_tie(plain, done, alone[plain]):
                    self.faults.append(f"row {ticket} {watched.request.id} is not what it is alone")

    def check_limits(self, ticket: int, row: Request, done: Completion) -> None:
        """Of a row that is like no other: its accounts."""
        limits = row.control
        thought = done.thinking_tokens if limits.is_thinking else 0
        if thought > max(limits.budget, 0) or len(done.token_ids) > limits.room:
            self.faults.append(f"row {ticket} has {thought} tokens of thinking of {limits.budget}")
        if len(done.forced) != len(done.token_ids):
            self.faults.append(f"row {ticket} has {len(done.forced)} marks for {len(done.token_ids)} tokens")


def _without_pauses(control: Any) -> Any:
    return dataclasses.replace(control, pause_at=())


def _is_near_tie(row: Request, done: Completion, alone: Completion) -> bool:
    """Programs of other lengths round differently: the first token that differs was as good as drawn by a coin."""
    pairs = zip(done.token_ids, alone.token_ids, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    return at is not None and near_tie(row, done.token_ids[:at]) < 1e-4


def stress(operations: int, threads: int, seed: int) -> Callers:
    """Run it all."""
    callers = Callers(seed)
    callers.engine.start()
    workers = [
        threading.Thread(target=callers.caller, args=(number, operations // threads)) for number in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    callers.finish(max(120.0, operations / 10))
    callers.check()
    return callers


def main() -> int:
    """Print, and write if asked, what was done and what was wrong."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    begin = time.monotonic()
    asked = {
        name: int(options.get(name, default)) for name, default in (("operations", 10000), ("threads", 4), ("seed", 0))
    }
    callers = stress(**asked)
    counts = "\n".join(f"| {name} | {count} |" for name, count in sorted(callers.counts.items()))
    text = (
        "# Random callers against the engine\n\n"
        f"`python tools/stress_engine.py {' '.join(f'{k}={v}' for k, v in asked.items())}`, {len(callers.rows)} rows, "
        f"{time.monotonic() - begin:.0f} s on a CPU. Faults: {len(callers.faults)}.\n\n"
        f"| what | times |\n|---|---|\n{counts}\n"
    )
    print(text, *callers.faults[:20], sep="\n")
    if "write" in options:
        pathlib.Path(options["write"]).write_text(text, encoding="utf-8")
    return 1 if callers.faults else 0


if __name__ == "__main__":
    sys.exit(main())
