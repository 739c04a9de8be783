"""The shim that counts, fails or interrupts the calls of a process that change files: see shim.c."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

COUNT, FAIL, KILL, SIGNAL = 1, 2, 3, 4
BEFORE, HALF, AFTER = 0, 1, 2  # of a call; HALF is the middle of a write, and like AFTER for others
PLACE = "BRICKYARD_FAULTS_SHIM"  # names the compiled shim, for a process that was started with it


def compiler() -> str | None:
    """The C compiler here, where there is one and the system can load the shim."""
    return shutil.which("cc") if sys.platform == "linux" else None


def restart() -> None:
    """Start this program again with the shim loaded, unless it is already."""
    if PLACE in os.environ:
        return
    if compiler() is None:
        sys.exit("faults: a C compiler (cc) and Linux are needed")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "shim.so")
        source = Path(__file__).with_name("shim.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", str(source), "-o", str(place), "-ldl"], check=True)
        own = {PLACE: str(place), "LD_PRELOAD": str(place), "OMP_NUM_THREADS": "1", "SOURCE_DATE_EPOCH": "1700000000"}
        done = subprocess.run([sys.executable, *sys.argv], env={**os.environ, **own}, check=False)
    sys.exit(done.returncode)


class Shim:
    """Arms the shim of this process for the calls below a folder."""

    def __init__(self) -> None:
        self._own = ctypes.CDLL(os.environ[PLACE])
        self._own.shim_arm.argtypes = [ctypes.c_char_p, *[ctypes.c_int] * 1, ctypes.c_long, *[ctypes.c_int] * 3]
        self._own.shim_calls.restype = ctypes.c_long
        self._own.shim_name.restype = ctypes.c_char_p
        self._own.shim_name.argtypes = [ctypes.c_long]

    def arm(
        self, folder: Path, mode: int, at: int = 0, value: int = 0, moment: int = BEFORE, lasting: bool = False
    ) -> None:
        """From now on count the calls; the one numbered `at`, from 1, fares as `mode` says.

        Args:
            folder: Calls that change something below it count.
            mode: COUNT, FAIL (with the error number `value`), KILL, or SIGNAL (with the number `value`).
            at: Number of the call.
            value: See `mode`.
            moment: When it is killed.
            lasting: Later calls that need room fail too, as on a full disk.
        """
        self._own.shim_arm(os.fsencode(folder.resolve()), mode, at, value, moment, lasting)

    def disarm(self) -> list[str]:
        """Stop counting; the names of the calls so far."""
        self._own.shim_disarm()
        return [self._own.shim_name(k).decode() for k in range(self._own.shim_calls())]
