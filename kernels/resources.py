#!/usr/bin/env python3
"""What the committed PTX takes of a multiprocessor: kernels/resources.tsv, from ptxas.

    python3 kernels/resources.py write|check [--ptxas PATH]

A row is an entry on an architecture: registers a thread, bytes of spill stores and loads, bytes of static shared
memory. Matrix and attention kernels must not spill. ptxas is that of the wheel nvidia-cuda-nvcc-cu12 in the version
below (found in this Python's packages unless --ptxas names it).
"""

import argparse
import concurrent.futures
import pathlib
import re
import site
import subprocess
import sys
import tempfile

PTXAS_WHEEL = "nvidia-cuda-nvcc-cu12==12.9.86"
ARCHITECTURES = ["sm_80", "sm_86", "sm_89", "sm_90"]
NEVER_SPILL = ["attention", "gemm"]
COLUMNS = ["text", "entry", "arch", "registers", "spill_stores", "spill_loads", "static_shared"]
HERE = pathlib.Path(__file__).resolve().parent
TABLE = HERE / "resources.tsv"


def assembler():
    for folder in site.getsitepackages() + [site.getusersitepackages()]:
        path = pathlib.Path(folder) / "nvidia" / "cuda_nvcc" / "bin" / "ptxas"
        if path.is_file():
            return path
    sys.exit(f"ptxas is not installed: pip install --no-deps {PTXAS_WHEEL}, or name the program with --ptxas")


def rows_of(ptxas, path, arch):
    with tempfile.TemporaryDirectory() as folder:
        command = [ptxas, "-v", f"-arch={arch}", path, "-o", pathlib.Path(folder) / "out.cubin"]
        done = subprocess.run(command, capture_output=True, text=True)
    log = done.stdout + done.stderr
    if done.returncode != 0:
        sys.exit(f"ptxas refuses {path.name} for {arch}:\n{log}")
    rows = {}
    entry = None
    for line in log.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            entry = found[1]
        elif found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spills = [int(found[1]), int(found[2])]
        elif found := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            rows[entry] = [int(found[1]), *spills, int(shared[1]) if shared else 0]
    declared = set(re.findall(r"(?m)^\.visible \.entry (\w+)", path.read_text()))
    if set(rows) != declared:
        sys.exit(f"ptxas told nothing about {sorted(declared - set(rows))} of {path.name} for {arch}")
    return [[path.stem, entry, arch, *numbers] for entry, numbers in rows.items()]


def measure(ptxas):
    texts = sorted((HERE / "ptx").glob("*.ptx"))
    work = [(path, arch) for path in texts for arch in ARCHITECTURES]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda job: rows_of(ptxas, *job), work))
    return sorted(row for part in parts for row in part)


def spilling(rows):
    return [f"{entry} spills on {arch}: {stores} bytes stored, {loads} loaded"
            for text, entry, arch, _, stores, loads, _ in rows if text in NEVER_SPILL and stores + loads > 0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["write", "check"])
    parser.add_argument("--ptxas", help="path of ptxas")
    arguments = parser.parse_args()
    # The control: a row that spills is found.
    if not spilling([["gemm", "control", "sm_80", 255, 8, 8, 0]]):
        sys.exit("a seeded spill was not noticed")
    rows = measure(arguments.ptxas or assembler())
    wrong = spilling(rows)
    text = "".join("\t".join(map(str, row)) + "\n" for row in [COLUMNS, *rows])
    if arguments.action == "write":
        TABLE.write_text(text)
    else:
        old = set(TABLE.read_text().splitlines() if TABLE.is_file() else [])
        new = set(text.splitlines())
        wrong += [f"only in {TABLE.name}: {line}" for line in sorted(old - new)]
        wrong += [f"only in what ptxas tells: {line}" for line in sorted(new - old)]
    if wrong:
        sys.exit("\n".join(wrong) + "\nif this is meant, run kernels/resources.py write")
    print(f"{len(rows)} rows of registers, spills and shared memory are as in {TABLE.name}")


if __name__ == "__main__":
    main()
