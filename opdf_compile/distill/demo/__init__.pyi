from .report import ACCURACY_HEAD as ACCURACY_HEAD
from .report import accuracy_rows as accuracy_rows
from .report import finding as finding
from .whole_job import DemoResult as DemoResult
from .whole_job import run_demo as run_demo
