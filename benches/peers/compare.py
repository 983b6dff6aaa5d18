"""Times one step of each stage here and in a plain PyTorch eager loop, and generation here and in transformers, on the
CPU, in turn, in one run, and prints the ratio.

    python benches/peers/compare.py --torch VENV/bin/python [--rounds 3] [--only gpt2/sft]

VENV needs torch and transformers (tests/fixtures/requirements.txt). The Rust side is `cargo bench --bench step`.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS, TASKS = ("gpt2", "llama"), ("sft", "reward", "generate", "ppo")
UNITS = {"sft": ("tokens/s", 8 * 128), "reward": ("pairs/s", 8), "generate": ("tokens/s", 32 * 64),
         "ppo": ("episodes/s", 32)}


def ours(model, task, target):
    """Units a second, from the median that criterion leaves behind."""
    command = ["cargo", "bench", "--bench", "step", "--", f"^{task}/{model}$"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    estimates = json.loads((target / "criterion" / task / model / "new" / "estimates.json").read_text())
    return UNITS[task][1] / (estimates["median"]["point_estimate"] * 1e-9)


def theirs(python, model, task):
    script = ROOT / "benches/peers/torch_eager.py"
    command = [python, "-B", script, "--model", model, "--task", task, "--seconds", "10", "--threads", "2"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["rate"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", default=sys.executable, help="a Python that has torch and transformers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="model/task")
    options = parser.parse_args()
    metadata = subprocess.run(["cargo", "metadata", "--no-deps", "--format-version", "1"], cwd=ROOT, check=True,
                              capture_output=True, text=True)
    target = pathlib.Path(json.loads(metadata.stdout)["target_directory"])
    print("| step | unit | rlhf | PyTorch | ratio (each round) |\n|---|---|---|---|---|")
    for model in MODELS:
        for task in TASKS:
            if options.only and options.only != f"{model}/{task}":
                continue
            rounds = [(ours(model, task, target), theirs(options.torch, model, task)) for _ in range(options.rounds)]
            mine, other = (statistics.median(side) for side in zip(*rounds))
            ratios = " ".join(f"{a / b:.2f}" for a, b in rounds)
            cells = (f"{model} {task}", UNITS[task][0], f"{mine:.1f}", f"{other:.1f}", f"{mine / other:.2f} ({ratios})")
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
