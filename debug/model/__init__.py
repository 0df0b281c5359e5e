"""Names, parts and source lines of a model, and the words that all of debug shares."""
