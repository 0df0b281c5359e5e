"""One page of a run: what its parts and the packages of others have to say of it."""

from .page import report as report
