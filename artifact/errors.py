"""The base of the error tree: what a user of Residuum can mend.

Every package derives its errors from `ResiduumError`, so that the command line and the server tell a mistake
of the user's from a bug: the first is one line with a hint, the second a traceback or a 500.
"""

from __future__ import annotations


class ResiduumError(Exception):
    """Something that the user can mend; the message says what is wrong and what would be right."""
