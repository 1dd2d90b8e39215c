"""The reports are made by what the intake's drill makes them by."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tests/bench"))
