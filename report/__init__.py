"""The page of a run: one HTML file or a live server, with sections by the parts of Loopwise and by other packages."""

from .page import report as report
