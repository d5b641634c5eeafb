"""Time limits as SLURM writes them, in seconds."""

import re

from modelforge.errors import UserError

DAYS = re.compile(r"(?P<d>\d+)-(?P<h>\d+)(:(?P<m>\d+)(:(?P<s>\d+))?)?")
HOURS = re.compile(r"(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)")
MINUTES = re.compile(r"(?P<m>\d+)(:(?P<s>\d+))?")
SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def seconds_of(time: str) -> int:
    """Seconds of a limit such as `90`, `90:00`, `1:30:00`, `1-12`, `1-12:30` or `1-12:30:00`."""
    match = DAYS.fullmatch(time) or HOURS.fullmatch(time) or MINUTES.fullmatch(time)
    seconds = sum(SECONDS[unit] * int(number or 0) for unit, number in match.groupdict().items()) if match else 0
    if not seconds:
        raise UserError(
            "--time: must be more than 0 and one of MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS, "
            f"DAYS-HOURS:MINUTES, DAYS-HOURS:MINUTES:SECONDS (got {time!r}); a day and a half is 1-12"
        )
    return seconds
