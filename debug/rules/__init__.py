"""Rules: each one detects one fault of a training run, describes it, and names the usual fix."""

from .finding import SEVERITIES as SEVERITIES
from .finding import Finding as Finding
from .finding import FindingError as FindingError
from .finding import Observation as Observation
from .finding import Rule as Rule
from .finding import at_least as at_least
from .registry import RULES as RULES
