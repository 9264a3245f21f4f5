INTERRUPTED = 130
"""Exit code after Ctrl-C."""
