"""The one exception a user can cause: bad input, told in a sentence."""


class SempaError(Exception):
    """Bad input that the user can mend; the message names the file, line or key, what was found and what was expected.

    The command line prints the message alone and exits with code 2.
    """
