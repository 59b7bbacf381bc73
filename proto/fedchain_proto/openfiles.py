"""How many files this process may have open: an average maps every update of a round at once.

The usual limit of 1,024 is a default, which any process may raise for itself up to the hard one.
"""

import resource

from fedchain_proto.statements import MAX_COHORT

ENOUGH = 2 * MAX_COHORT  # the largest round, and room for everything else that is open


def allow_open_files(wanted: int = ENOUGH) -> int:
    """Raise this process's limit on open files to `wanted`, or as far as the system allows.

    Never lowers it and never fails: who then runs out of files is told so when it happens.

    Returns:
        The limit that is in force now; resource.RLIM_INFINITY if there is none.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    allowed = wanted if hard == unlimited else min(wanted, hard)
    if soft == unlimited or soft >= allowed:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (ValueError, OSError):  # macOS has a lower limit yet, which it does not tell
        return soft
    return allowed
