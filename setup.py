"""Map the top-level folders under the package ``loopwise``, with every package and data file in them."""

from setuptools import find_packages, setup

FOLDERS = {
    "loopwise": "base",
    "loopwise.sift": "sift",
    "loopwise.compile": "compile",
    "loopwise.debug": "debug",
    "loopwise.tune": "tune",
    "loopwise.feed": "feed",
    "loopwise.report": "report",
    "loopwise.examples": "examples",
}
DATA = ["py.typed", "README.md", "*.c", "*.html", "*.css", "*.js", "*.yaml"]

setup(
    packages=[
        name
        for package, folder in FOLDERS.items()
        for name in (package, *(f"{package}.{inner}" for inner in find_packages(folder)))
    ],
    package_dir=FOLDERS,
    package_data={"": DATA},
)
