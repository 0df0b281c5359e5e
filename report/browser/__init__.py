"""Templates, styles and scripts of the page, all of which are written into it."""
