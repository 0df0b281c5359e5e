"""A batch as a header and a few blocks of memory."""
