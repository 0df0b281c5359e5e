"""Rules: each looks for one fault of a training run, says what it saw, and what usually helps."""

from .finding import SEVERITIES as SEVERITIES
from .finding import Finding as Finding
from .finding import FindingError as FindingError
from .finding import Observation as Observation
from .finding import Rule as Rule
from .finding import at_least as at_least
from .registry import RULES as RULES
