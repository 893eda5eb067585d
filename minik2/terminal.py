"""What all commands do alike towards a terminal: text that does not steer it, Ctrl-C's status."""

INTERRUPTED = 130  # what a shell reports of a command that Ctrl-C ended


def plain(text: str) -> str:
    """Text from a model or a file, its control characters replaced, line ends and tabs kept.

    >>> plain("a\\x1b[2Jb\\n")
    'a\\ufffd[2Jb\\n'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
