"""What training waits for: the machine, the phases of each step, and the operators of chosen ones."""

from .options import Profile as Profile
from .profiler import Profiler as Profiler
