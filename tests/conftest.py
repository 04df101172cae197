"""Eight CPU devices for every test, a persistent compilation cache, and the folder of shared real data."""

import os
import pathlib

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "s1jax" / "test_xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import hypothesis  # noqa: E402  (the environment must be set before anything imports jax)
import made  # noqa: E402
import pytest  # noqa: E402
import shape_exempt  # noqa: E402
import shape_plugin  # noqa: E402

# Examples are a function of the test alone, so that what passes once passes again; none is kept beside the tests.
hypothesis.settings.register_profile("s1jax", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("s1jax")

REPOSITORY = pathlib.Path(__file__).parent.parent
SHAPES = shape_plugin.Shapes(shape_plugin.alphabet(REPOSITORY / "s1jax/parallel/axes.py"), shape_exempt.EXEMPT)
shape_plugin.install("s1jax", SHAPES)


def pytest_configure(config):
    """Names of arrays are held to their letters wherever a test goes."""
    config.pluginmanager.register(shape_plugin.Plugin(SHAPES), "shapes")


SHARED = pathlib.Path(os.environ.get("S1JAX_SHARED", REPOSITORY.parent / "shared")) / "data"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real data: `S1JAX_SHARED`, else `../shared` beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data: {SHARED} does not exist; set S1JAX_SHARED to a folder that has it")
    return SHARED


@pytest.fixture(scope="session")
def config_files(tmp_path_factory) -> pathlib.Path:
    """A folder of published `config.json` files by name: the real ones, else of their fields (`made.py`)."""
    real = SHARED / "configs"
    return real if real.is_dir() else made.write_configs(tmp_path_factory.mktemp("made") / "configs")


@pytest.fixture(scope="session")
def qwen_files(tmp_path_factory) -> pathlib.Path:
    """The folder of Qwen2.5's tokenizer, else of one with its special tokens and chat format (`made.py`)."""
    real = SHARED / "tokenizer" / "qwen2.5"
    return real if real.is_dir() else made.write_tokenizer(tmp_path_factory.mktemp("made") / "tokenizer")


def pytest_terminal_summary(terminalreporter):
    """Seconds of each test file, set-up included: where the time of the suite goes."""
    seconds: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration"):
                group = report.nodeid.partition("::")[0]
                seconds[group] = seconds.get(group, 0.0) + report.duration
    terminalreporter.section("seconds by file")
    for group, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{spent:8.1f}  {group}")
