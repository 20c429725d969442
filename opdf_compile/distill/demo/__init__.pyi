from .report import ACCURACY_HEAD as ACCURACY_HEAD
from .report import accuracy_rows as accuracy_rows
from .report import finding as finding
from .running import DemoResult as DemoResult
from .running import run_demo as run_demo
