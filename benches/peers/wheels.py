"""Packages that a machine lacks, from wheels in `benches/peers/wheels/`, which git ignores. Fill it where a network is:

    pip download --no-deps --only-binary=:all: -d benches/peers/wheels trl==1.12.0 liger-kernel datasets dill \
        multiprocess xxhash

with `--python-version`, `--implementation cp` and `--platform` of the other machine where they differ, and with
`accelerate`, `pandas`, `pyarrow`, `psutil` if it lacks those too. What is installed on the machine comes first.
"""

import pathlib
import sys
import tempfile
import zipfile

WHEELS = pathlib.Path(__file__).with_name("wheels")


def add():
    """Unpacks new wheels outside of the tree, and puts them at the end of the search path."""
    site = pathlib.Path(tempfile.gettempdir()) / "rlhf-peer-wheels"
    for wheel in sorted(WHEELS.glob("*.whl")):
        stamp = site / f"{wheel.name}.unpacked"
        if not stamp.exists():
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
            stamp.touch()
    if site.exists():
        sys.path.append(str(site))
