"""E-mail addresses and phone numbers in what people write, and what stands in their place.

Ingest takes them out before a row is written (pipeline/masking.py), so no model has ever read one. What is served reads
messages as customers write them: it takes the same out first, for a model tells rightly only what looks like what it
has learnt.
"""

from __future__ import annotations

import re

E_MAIL = "[e-mail]"
PHONE = "[phone]"

# Each of these looks at a character a bounded number of times: 64 KiB without a space took 25 s before.
_ADDRESS = re.compile(r"(?<![\w.+-])[\w.+-]++@[\w-]++(?:\.[\w-]++)++")
# Written by people, so only what is hardly anything else is taken: a date, a price, a size and a barcode (8, 12 to 14
# digits) stay. A ten-digit ISBN that begins with 0 and has no hyphens goes.
_PHONE = re.compile(
    r"""(?x) (?<![A-Za-z0-9_-]) (?<!\d[.,]) (?:
    (?:\+|00) [1-9] (?:[ ()./-]{0,3}\d){6,14}        # +49 (0)30 1234567
    | \( 0?\d{2,5} \) [ /-]{0,2} \d(?:[ -]?\d){4,9}  # (555) 123-4567
    | 0\d{2,4} [ /-]{1,3} \d(?:[ -]?\d){4,9}         # 0151 2345678, 030/1234567
    | 0[1-9] (?:[ .-]\d{2}){4}                       # 06 12 34 56 78
    | 0\d{9,10} | 1[3-9]\d{9}                        # in one piece; Chinese mobiles
    | [2-9]\d{2} [.-] [2-9]\d{2} [.-] \d{4}          # 555-234-5678
    ) (?![A-Za-z0-9_])"""
)
# What a text must have for any of it to be found, in RE2's words: most texts need no second look.
MAY_TELL = r"@|[0-9][0-9 ()./-]{5,}[0-9]"


def without_contacts(text: str) -> str:
    """A text with `E_MAIL` and `PHONE` where addresses and numbers were."""
    return _PHONE.sub(PHONE, _ADDRESS.sub(E_MAIL, text))
