"""What can be known of a training before it begins."""

from .check import check as check
from .checked import Checked as Checked
