"""Verbs and dispatch: `s1jax VERB [CONFIG.yaml] [dotted.key=value ...]`.

Nothing that computes is imported before the environment of the recipe is set (XLA reads it once, when it is loaded).
"""

import contextlib
import dataclasses
import errno
import importlib
import importlib.util
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s1jax import config as configuration
from s1jax import help
from s1jax.config import BadInput
from s1jax.runs import places
from s1jax.runs.places import DiskFull


@dataclasses.dataclass(frozen=True)
class Verb:
    """One command: where its config class and its `run(config)` live, what it does, an example, and its platform."""

    module: str
    config: str
    summary: str
    example: str
    platform: str | None = None


VERBS: dict[str, Verb] = {
    "quickstart": Verb(
        "s1jax.quickstart.run",
        "QuickstartRun",
        "curate, train, convert, evaluate and report on a tiny model, on the CPU, offline, in minutes",
        "s1jax quickstart out=runs/quickstart seed=1",
        platform="cpu",
    ),
    "curate": Verb(
        "curation.run",
        "CurateRun",
        "sources -> traces -> filters -> selection -> rows.jsonl and receipt.json",
        "s1jax curate configs/curate_s1k.yaml out=runs/curate",
    ),
    "train": Verb(
        "s1jax.train.run",
        "TrainRun",
        "supervised fine-tuning on a mesh -> checkpoints, metrics.jsonl, hf/",
        "s1jax train configs/s1_32b.yaml mesh.fsdp=4 mesh.context=4",
    ),
    "convert": Verb(
        "s1jax.checkpoint.convert",
        "ConvertRun",
        "Hugging Face safetensors <-> Orbax, streamed",
        "s1jax convert source=DIR target=DIR to=orbax dtype=bfloat16",
    ),
    "generate": Verb(
        "s1jax.methods.run",
        "GenerateRun",
        "prompts -> completions.jsonl under a control; one prompt, or a chat, in the terminal",
        "s1jax generate model=DIR prompts=FILE out=DIR control.thinking_token_budget=512; s1jax generate model=DIR "
        "prompt='How many r are in raspberry?'; s1jax generate model=DIR (a chat)",
    ),
    "eval": Verb(
        "s1jax.eval.run",
        "EvalRun",
        "benchmark x control -> samples.jsonl and report.json",
        "s1jax eval model=DIR benchmark=aime24 control.thinking_token_budget=4096 out=DIR",
    ),
    "report": Verb(
        "s1jax.eval.report",
        "ReportRun",
        "many reports -> Control, Scaling, Performance: scaling.json, scaling.png, index.html",
        "s1jax report reports=[runs/a,runs/b] out=runs/report",
    ),
    "grade": Verb(
        "s1jax.eval.grade",
        "GradeRun",
        "completions of any engine and reference answers -> samples.jsonl and report.json, without a model",
        "s1jax grade completions=FILE out=DIR kind=math",
    ),
    "plan": Verb(
        "s1jax.plan.run",
        "PlanRun",
        "compile the step for a mesh that is not here; say what fits -> plan.json",
        "s1jax plan configs/s1_32b.yaml topology=h100:2x8 mesh.fsdp=4 mesh.context=4",
        platform="cpu",
    ),
}
TERMINATED, INTERRUPTED = 75, 130
LONGEST_LINE = 1500  # characters of an error
# What the system says of a path that the user can mend; anything else is a fault of the program.
UNUSABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTEMPTY),
}
GOOGLE = "0x1ae0"  # vendor of TPUs on the PCI bus
HOW_TO_READ = """\
Each line is a key with its default, as it is written on the command line; in CONFIG.yaml the parts of a dotted key
stand below one another. A key with * may change when a run goes on in its folder; all others must be as they were."""
FILE_ONLY = """\
in CONFIG.yaml alone: read before JAX is loaded
  env  environment variables to set where they are not set yet, such as XLA_FLAGS (names and values)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code: 0 done, 2 bad input, 75 SIGTERM, 130 Ctrl-C, 1 anything else."""
    if arguments is None:  # the process is ours
        _quiet_libraries()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(_overview())
            return 0
        with _ended_by_sigterm():
            return _dispatch(arguments[0], arguments[1:])
    except (BadInput, DiskFull) as error:
        print(f"s1jax: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who read our output has left: `s1jax train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in UNUSABLE:
            traceback.print_exc()
            return 1
        name = f"{_one_line(os.fsdecode(error.filename))} cannot be used" if error.filename else "a file cannot be used"
        print(f"s1jax: {name} ({error.strerror}); give another path, or make room there", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("s1jax: interrupted; what was finished is saved, the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:
        if stop.code == TERMINATED:
            print("s1jax: stopped by SIGTERM; what was finished is saved, the same command goes on", file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else 1
    except Exception:
        traceback.print_exc()
        return 1


def _one_line(text: str) -> str:
    """An error in one line that a terminal can show: control characters written out, the middle of a long one cut."""
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in " ".join(text.splitlines()))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends a verb as Ctrl-C does, files closed, with its own exit code; `train` ends its step first."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _dispatch(name: str, arguments: list[str]) -> int:
    if name not in VERBS:
        raise BadInput(f"unknown verb {name!r}; the verbs are {', '.join(VERBS)}")
    verb = VERBS[name]
    if any(argument in ("-h", "--help") for argument in arguments):
        print(_help(name, verb))
        return 0
    path = arguments.pop(0) if arguments and "=" not in arguments[0] else None
    prepare_environment(path, verb.platform)
    config = load_config(name, path, arguments)
    run_verb(name, config)
    return 0


def load_config(name: str, path: str | None, overrides: Sequence[str]) -> Any:
    """The config of a verb from its recipe and overrides; `out` defaults to `runs/<recipe name>`. Raises BadInput."""
    verb = VERBS[name]
    config = configuration.load(getattr(importlib.import_module(verb.module), verb.config), path, overrides)
    # A plan takes the recipe of a training run, whose folder it must not take.
    return with_out(config, f"{'plan_' if name == 'plan' else ''}{pathlib.Path(path).stem}" if path else name)


def config_of(name: str, fields: Mapping[str, Any]) -> Any:
    """The config of a verb from a dict of its fields, nested as in a recipe. Raises BadInput."""
    verb = VERBS[name]
    return with_out(configuration.from_dict(getattr(importlib.import_module(verb.module), verb.config), fields), name)


def with_out(config: Any, recipe: str) -> Any:
    """`out` where none is given, unless the run writes nothing then (a property `needs_out`)."""
    is_open = "out" in {field.name for field in dataclasses.fields(config)} and not config.out
    is_open = is_open and getattr(config, "needs_out", True)
    config = dataclasses.replace(config, out=f"runs/{recipe}") if is_open else config
    places.place(getattr(config, "out", ""))  # a store of another kind is refused before anything is read
    return config


def run_verb(name: str, config: Any) -> Any:
    """Run a verb; what its `run` returns."""
    return importlib.import_module(VERBS[name].module).run(config)


def prepare_environment(path: str | None, platform: str | None = None) -> None:
    """Set what must be in the environment before JAX is loaded, where it is not set yet.

    The recipe's `env` section, the platform of a verb that has one, and a compilation cache.
    """
    if platform is not None:
        os.environ.setdefault("JAX_PLATFORMS", platform)
    if path is not None:
        section = configuration.read_yaml(path).get("env") or {}
        if not isinstance(section, dict):
            raise BadInput(f"{path}: env is {section!r}; it must be names and values of environment variables")
        for key, value in section.items():
            _set(path, key, value)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(places.cache_folder() / "xla"))
    if "jax" not in sys.modules and (platforms := _platforms_at_hand()) is not None:
        os.environ.setdefault("JAX_PLATFORMS", platforms)


def _platforms_at_hand() -> str | None:
    """Platforms without the TPU's where its library is installed and no TPU is there; None where JAX may look itself.

    libtpu, which plans and tests install, else complains of what it does not find at each start. Where a device is
    whose plugin is not known here, JAX looks.
    """
    vendors = pathlib.Path("/sys/bus/pci/devices").glob("*/vendor")
    has_tpu = any(vendor.read_text().strip() == GOOGLE for vendor in vendors) or "TPU_ACCELERATOR_TYPE" in os.environ
    if importlib.util.find_spec("libtpu") is None or has_tpu or pathlib.Path("/dev/kfd").exists():
        return None
    if not pathlib.Path("/dev/nvidiactl").exists():
        return "cpu"
    has_plugin = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    return "cuda,cpu" if has_plugin else None


def _quiet_libraries() -> None:
    """Warnings of libraries stay off the terminal, in child processes too, unless Python or they are told otherwise.

    Not that JAX found a device and cannot use it.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    if not sys.warnoptions:
        os.environ["PYTHONWARNINGS"] = "ignore"
        warnings.simplefilter("ignore")
    for name in ("absl", "jax", "orbax", "transformers", "datasets", "huggingface_hub", "grain", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)


def _set(path: str, key: Any, value: Any) -> None:
    """One variable of a recipe's `env`, where it is not set yet. Raises BadInput for one that cannot be."""
    name, text = str(key), str(value)
    if not name or "=" in name or "\0" in name + text or isinstance(value, dict | list):
        raise BadInput(f"{path}: env has {name!r}: {text!r}, which no environment can hold; give a name and a value")
    if name == "XLA_FLAGS" and name not in os.environ:
        _refuse_flags(path, text)
    os.environ.setdefault(name, text)


def _refuse_flags(path: str, flags: str) -> None:
    """Raises BadInput for flags that XLA does not know: it ends the process for them, without a line of ours."""
    code = "import jax; jax.devices()"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    tried = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        unknown = re.search(r"[Uu]nknown flags? in XLA_FLAGS: *(.*)", tried.stderr)
        what = f"unknown: {unknown[1].strip()}" if unknown else tried.stderr.strip().rpartition("\n")[2][:200]
        raise BadInput(f"{path}: env.XLA_FLAGS={flags!r} is refused by XLA ({what}); mend the flags or leave them out")


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:{width}}  {verb.summary}" for name, verb in VERBS.items())
    return (
        f"usage: s1jax VERB [CONFIG.yaml] [dotted.key=value ...]\n\n{verbs}\n\n`s1jax VERB --help` lists a verb's keys."
    )


def _help(name: str, verb: Verb) -> str:
    cls = getattr(importlib.import_module(verb.module), verb.config)
    keys = "\n\n".join(map(str, help.sections(cls)))
    return f"s1jax {name}: {verb.summary}\n\nexample: {verb.example}\n\n{HOW_TO_READ}\n\n{keys}\n\n{FILE_ONLY}"


if __name__ == "__main__":
    sys.exit(main())
