"""What can be known of a training before it begins."""

from .check import check as check
from .report import Checked as Checked
