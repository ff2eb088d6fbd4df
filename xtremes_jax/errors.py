"""The one exception that is written for the person at the keyboard."""


class InputError(ValueError):
    """Something a person gave (a flag, a file, a clip, a column) cannot be used.

    The message says what happened, to which clip, column or flag, and what to do next. Entry points print it without a
    traceback and exit with status 2.
    """
