"""The peers on a GPU, on the shapes of `benches/kernels.rs` and `benches/step.rs`: PyTorch, torch.compile, SDPA's
backends, Liger, transformers' generate, TRL's PPO. A part is meant to take at most eight minutes on an H100.

    python benches/peers/gpu.py --part PART --out OUT/peers.jsonl [--ours OUT/criterion]

PART is attention (with the models' products), head (with rows, losses and the optimizer), step, step-large, decode or
ppo. JSON lines go to --out and to stderr, a table to stdout. Packages that the machine lacks come from wheels (see
`wheels.py`). `--device cpu --tiny` runs every function on toy sizes by the clock of the wall: a trial of the
script, whose numbers mean nothing.
"""

import argparse
import datetime
import json
import pathlib
import platform
import subprocess

import wheels

wheels.add()

import torch  # noqa: E402

import report  # noqa: E402
from protocol import Lab  # noqa: E402

PARTS = ("attention", "head", "step", "step-large", "decode", "ppo")


def modules_of(part):
    """What a part runs, imported when it is asked for: an import may need a package that is absent."""
    import gpu_attention
    import gpu_ceilings
    import gpu_decode
    import gpu_head
    import gpu_ppo
    import gpu_rl
    import gpu_rows
    import gpu_step

    return {
        "attention": [gpu_ceilings.products, gpu_attention.training, gpu_attention.decoding],
        "head": [gpu_head.run, gpu_rows.run, gpu_rl.run],
        "step": [gpu_step.run],
        "step-large": [gpu_step.run_large],
        "decode": [gpu_decode.run],
        "ppo": [gpu_ppo.run],
    }[part]


def version_of(package):
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def card_now():
    """Clocks, power and temperature as nvidia-smi reads them at this moment."""
    fields = "name,driver_version,clocks.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True,
                              text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"card": f"nvidia-smi: {type(error).__name__}"}
    return dict(zip(fields.split(","), map(str.strip, done.stdout.splitlines()[0].split(","))))


def header(lab):
    """What a reader needs before any number."""
    about = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    if lab.on_gpu:
        about |= {"device": torch.cuda.get_device_name(lab.device)} | card_now()
    else:
        about["device"] = f"cpu, {torch.get_num_threads()} threads"
    about |= {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    about |= {name: version_of(name) for name in ("triton", "transformers", "trl", "liger-kernel")}
    if lab.tiny or not lab.on_gpu:
        about["note"] = "a trial of the script: these numbers mean nothing"
    return about


def run_part(lab, part):
    import gpu_ceilings

    lab.part = part
    lab.emit({"header": header(lab)})
    gpu_ceilings.run(lab)
    for work in modules_of(part):
        work(lab)
    if lab.on_gpu:
        lab.emit({"after": card_now()})


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, action="append", help="one or more; all of them without it")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, for a trial of the script")
    parser.add_argument("--out", help="a file that the JSON lines are appended to")
    parser.add_argument("--ours", help="criterion's directory of our benchmarks, for the table")
    parser.add_argument("--threads", type=int, help="of a CPU")
    return parser.parse_args()


def main():
    options = arguments()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        row = {"side": "peer", "part": "all", "name": "all peers", "shape": options.device, "peer": "PyTorch",
               "absent": f"torch {torch.__version__} sees no CUDA device"}
        if options.out:
            with open(options.out, "a") as record:
                record.write(json.dumps(row) + "\n")
        print(report.table([row]))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.out:
        pathlib.Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    lab = Lab(options.device, options.tiny, options.out)
    torch.manual_seed(1)
    for part in options.part or PARTS:
        run_part(lab, part)
    print(report.table((report.ours(options.ours) if options.ours else []) + lab.rows))


if __name__ == "__main__":
    main()
