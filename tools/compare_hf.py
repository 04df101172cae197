"""Parity with transformers, measured: one line for each reduced model, then true widths, bf16 and position 32,768.

    .venv/bin/python tools/compare_hf.py [--configs ../shared/data/configs]

Random weights. `logits`: largest difference over whole, padded, packed and far rows (to position 32,767); `cached`:
the same over a prompt and 64 greedy ids; `ids`: whether all of those are equal; `gradient`: the largest
|ours - theirs| / |theirs| of a tensor. Prints a Markdown table. Needs torch and transformers; takes some minutes.
"""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import parity  # noqa: E402  (the comparisons are those of the tests)
import parity_scale  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=pathlib.Path, default=ROOT.parent / "shared" / "data" / "configs")
    folder = parser.parse_args().configs
    print("| reduced model | tied | G | D | heads x width | logits | cached | ids | gradient |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in parity.cases(folder):
        print(reduced_line(case), flush=True)
    real = parity.real_configs(folder)
    print("\n| one layer at true width | D | F | logits |\n|---|---|---|---|")
    numbers = parity_scale.noise(280_000_000)
    for name, hf in real.items():
        if hf["hidden_size"] * hf["intermediate_size"] <= 5120 * 13824:
            error = parity_scale.wide_error(hf, numbers)
            print(f"| {name} | {hf['hidden_size']} | {hf['intermediate_size']} | {error:.1e} |", flush=True)
    print("\n| reduced model | bf16 RMS error / peer's | cached logits at 32,752 to 32,767 |\n|---|---|---|")
    for name in ("qwen2.5-7b-instruct", "qwen3-8b", "llama-3.1-8b"):
        small = parity.reduced(real[name])
        ratio, _ = parity_scale.bfloat16_ratio(small)
        far = parity_scale.far_cached_error({**small, "head_dim": 128})
        print(f"| {name} | {ratio:.2f} | {far:.1e} |", flush=True)


def reduced_line(case: parity.Case) -> str:
    """One line of the table."""
    other = parity.peer(case.hf)
    model = parity.ours(other)
    config = model.config
    logits = max(parity.error_by_row(model, other).values())
    cached, is_equal = parity.cached(model, other)
    gradient = max(parity.gradient_errors(model, other).values())
    heads = config.K * config.G * config.H
    cells = [case.name, "yes" if config.tied else "no", config.G, config.D, heads, f"{logits:.1e}", f"{cached:.1e}"]
    return f"| {' | '.join(map(str, cells))} | {'equal' if is_equal else 'DIFFER'} | {gradient:.1e} |"


if __name__ == "__main__":
    main()
