"""Profile of the time that training waits: the machine, the phases of each step, operators of chosen steps."""

from .profiler import Profile as Profile
from .profiler import Profiler as Profiler
