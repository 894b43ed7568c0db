"""The one exception a user can cause: bad input, said in one sentence."""

_LONGEST = 2000


class SempaError(Exception):
    """Bad input that the user can fix; the message names the file, line or key, what was found and what was expected.

    The command line prints the message alone and exits with code 2. Line ends and control characters, which a file may
    have put into it and a terminal would obey, are escaped; a message of more than 2,000 characters is cut.
    """

    def __init__(self, message: str) -> None:
        text = message if message.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
        super().__init__(text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …")
