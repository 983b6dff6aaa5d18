#!/usr/bin/env python3
"""Compiles CUDA C++ to committed PTX with NVRTC: kernels/*.cu to kernels/ptx, and the emulator's own test kernels
tests/ptx/*.cu beside themselves.

    python3 kernels/generate.py [--nvrtc libnvrtc.so.12] [--check] [NAME ...]

NVRTC is that of the wheel nvidia-cuda-nvrtc-cu12 in the version below (found in this Python's packages unless
--nvrtc names the library). Its output is deterministic: the same sources give the same bytes on every machine.
--check writes nothing; it fails with the names of the texts that would change.
"""

import argparse
import ctypes
import glob
import hashlib
import pathlib
import re
import site
import sys

# src/device/freshness.rs reads these three constants.
NVRTC_WHEEL = "nvidia-cuda-nvrtc-cu12==12.9.86"
OPTIONS = ["--gpu-architecture=compute_80", "--fmad=false", "-lineinfo", "--std=c++17"]
# The oldest PTX version that assembles the text: drivers from r525 on read it.
PTX_VERSION = "7.1"

HERE = pathlib.Path(__file__).resolve().parent
TESTS = HERE.parent / "tests" / "ptx"
# Where sources lie, and where their PTX does.
FOLDERS = [(HERE, HERE / "ptx"), (TESTS, TESTS)]


def library():
    for folder in site.getsitepackages() + [site.getusersitepackages()]:
        for path in glob.glob(folder + "/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"):
            return path
    sys.exit(f"NVRTC is not installed: pip install {NVRTC_WHEEL}, or name the library with --nvrtc")


def sources(path, seen):
    """The file and the headers it includes, each once, in the order of inclusion."""
    if path in seen:
        return
    seen.append(path)
    for name in re.findall(r'#include "(.*?)"', path.read_text()):
        sources(path.parent / name, seen)


def source_hash(files):
    """SHA-256 over options, names and texts: what src/device/freshness.rs recomputes."""
    digest = hashlib.sha256()
    digest.update((" ".join(OPTIONS) + f" {NVRTC_WHEEL} {PTX_VERSION}\n").encode())
    for path in files:
        text = path.read_bytes()
        digest.update(f"{path.name} {len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()


def compile_ptx(nvrtc, path):
    files = []
    sources(path, files)
    headers = files[1:]
    texts = (ctypes.c_char_p * max(1, len(headers)))(*[h.read_bytes() for h in headers])
    names = (ctypes.c_char_p * max(1, len(headers)))(*[h.name.encode() for h in headers])
    program = ctypes.c_void_p()
    created = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), path.read_bytes(), path.name.encode(), len(headers), texts, names)
    if created != 0:
        sys.exit(f"nvrtcCreateProgram answered {created} for {path.name}")
    options = (ctypes.c_char_p * len(OPTIONS))(*[o.encode() for o in OPTIONS])
    result = nvrtc.nvrtcCompileProgram(program, len(OPTIONS), options)
    log = read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).strip()
    if log:
        print(f"{path.name}:\n{log}", file=sys.stderr)
    if result != 0:
        sys.exit(f"{path.name} does not compile")
    text = read(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    text = re.sub(r"(?m)^\.version \S+$", f".version {PTX_VERSION}", text)
    # NVRTC puts the folder that it was started in before the names of the sources.
    text = re.sub(r'(?m)^(\s*\.file\s+\d+ ")[^"]*/', r"\1", text)
    return f"// sha256 {source_hash(files)}\n{text}"


def read(size_of, get, program):
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(max(1, size.value))
    get(program, buffer)
    return buffer.value.decode()


def place(path):
    return path.relative_to(HERE.parent)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="kernels to compile (default: all)")
    parser.add_argument("--nvrtc", help="path of libnvrtc.so.12")
    parser.add_argument("--check", action="store_true", help="compare with the committed texts, byte by byte")
    arguments = parser.parse_args()
    nvrtc = ctypes.CDLL(arguments.nvrtc or library())
    stale = []
    for folder, out in FOLDERS:
        chosen = [p for p in sorted(folder.glob("*.cu")) if not arguments.names or p.stem in arguments.names]
        for path in chosen:
            target, text = out / f"{path.stem}.ptx", compile_ptx(nvrtc, path).encode()
            same = target.is_file() and target.read_bytes() == text
            if not same and arguments.check:
                stale.append(f"{place(target)} is not what {place(path)} compiles to")
            elif not same:
                target.write_bytes(text)
                print(f"{place(target)} written")
        if not arguments.names:
            orphans = [p for p in sorted(out.glob("*.ptx")) if not (folder / f"{p.stem}.cu").is_file()]
            stale += [f"{place(path)} has no source" for path in orphans]
    if stale:
        sys.exit("\n".join(stale) + "\nrun kernels/generate.py, and remove what has no source")
    print("every PTX text is what its source compiles to")


if __name__ == "__main__":
    main()
