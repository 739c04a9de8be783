"""Train the sources of the benchmarks that are not among the shared ones; some fifteen minutes on two cores.

    python benchmarks/sources.py

Each is one `brickyard train` command on training images; what is there already is kept.
"""

from __future__ import annotations

import subprocess
import sys

import tables

COMMANDS: dict[str, list[str]] = {
    "vgg11-w25-cifar100": [
        *("vgg11?width=0.25", "--data", str(tables.SHARED / "data/cifar100"), "--epochs", "40", "--augment"),
        *("--mean", "0.507,0.487,0.441", "--std", "0.267,0.256,0.276"),
    ],
}


def main() -> None:
    tables.TRAINED.mkdir(exist_ok=True)
    for name, words in COMMANDS.items():
        path = tables.TRAINED / f"{name}.safetensors"
        if not path.exists():
            subprocess.run([sys.executable, "-m", "brickyard", "train", *words, "-o", str(path)], check=True)


if __name__ == "__main__":
    main()
