"""The small networks (`map_networks.py`) are read by more than one file of tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
