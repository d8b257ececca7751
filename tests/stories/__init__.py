"""Stories: comment in, comment out, with all real processes."""
