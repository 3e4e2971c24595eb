"""Addresses and numbers by which people can be reached or charged, in what they write, and what stands in their place.

Ingest takes them out before a row is written (pipeline/masking.py), so no model has ever read one. What is served reads
messages as customers write them: it takes the same out first, for a model tells rightly only what looks like what it
has learnt.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

E_MAIL = "[e-mail]"
PHONE = "[phone]"
CARD = "[card]"
IBAN = "[iban]"

# Each of these looks at a character a bounded number of times: 64 KiB without a space took 25 s before. Also as
# an address bar writes it (`ann%40mail.example`), and with an apostrophe (`o'brien@mail.example`).
_ADDRESS = re.compile(r"(?i)(?<![\w.+-])[\w.+-]++(?:(?:'|%2B)[\w.+-]++){0,3}(?:@|%40)[\w-]++(?:\.[\w-]++)++")
# Written by people, so only what is hardly anything else is taken: a date, a price, a size and a barcode (8, 12 to 14
# digits) stay. A ten-digit ISBN that begins with 0 and has no hyphens goes.
_PHONE = re.compile(
    r"""(?x) (?<![A-Za-z0-9_-]) (?<!\d[.,]) (?:
    (?:\+|00) [1-9] (?:[ ()./-]{0,3}\d){6,14}        # +49 (0)30 1234567
    | \( 0?\d{2,5} \) [ /-]{0,2} \d(?:[ -]?\d){4,9}  # (555) 123-4567
    | 0\d{2,4} [ /-]{1,3} \d(?:[ -]?\d){4,9}         # 0151 2345678, 030/1234567
    | 0[1-9] (?:[ .-]\d{2}){4}                       # 06 12 34 56 78
    | 0\d{9,10} | 1[3-9]\d(?:\d{8}|([ -])\d{4}\1\d{4})  # in one piece; Chinese mobiles, also 138-0013-8000
    | (?:1[ .-])? [2-9]\d{2} [.-] [2-9]\d{2} [.-] \d{4}  # 555-234-5678, 1-555-234-5678
    ) (?![A-Za-z0-9_])"""
)
# In one piece or in groups of four, as banks print it; what else looks like it fails the check digits (ISO 13616),
# but for one of 97. A masked id is none.
_IBAN = re.compile(
    r"""(?xia) (?<![A-Z0-9]) (?! (?-i:[0-9a-f]{32}) (?![A-Z0-9]) ) [A-Z]{2}\d\d
    (?: [A-Z0-9]{11,30} | (?:[ -][A-Z0-9]{4}){2,7} (?:[ -][A-Z0-9]{1,4})? ) (?![A-Z0-9])"""
)
# Of the lengths and beginnings of the large issuers; a tenth of such numbers that are no card's pass the check digit.
_CARD = re.compile(
    r"""(?xa) (?<![A-Za-z0-9_.,-]) (?: (?: 4\d{3} | 5[1-5]\d\d | 2[2-7]\d\d | 6\d{3} ) (?:[ -]?\d{4}){3}
    | 3[47]\d\d [ -]? \d{6} [ -]? \d{5} ) (?![A-Za-z0-9_])"""
)
# What a text must have for any of it to be found, in RE2's words: most texts need no second look.
MAY_TELL = r"@|＠|%40|\p{Nd}[^\p{L}]{5,}\p{Nd}"
_DASHES = "\u2010\u2011\u2012\u2013\u2212"


def without_contacts(raw: str) -> str:
    """A text with e-mail addresses, numbers of phones, cards and accounts masked."""
    for pattern, kept in _TELLING:
        raw = pattern.sub(kept, raw)
        if not raw.isascii():  # second: as a hyphen, a dash before a number would make an article number of it
            raw = _replaced(pattern, kept, raw)
    return raw


_Kept = Callable[[re.Match[str]], str]


def _without_iban(match: re.Match[str]) -> str:
    """What was found, its account masked; words behind it may have been taken for its last groups."""
    written, end = match[0], len(match[0])
    while end > 0:
        signs = re.sub("[ -]", "", written[:end])
        digits = "".join(str(int(sign, 36)) for sign in signs[4:] + signs[:4])
        if int(digits) % 97 == 1:
            return IBAN + written[end:]
        end = written.rfind(" ", 0, end)
    return written


def _without_card(match: re.Match[str]) -> str:
    """What was found, masked where its check digit is right (Luhn; ISO/IEC 7812-1)."""
    digits = [int(sign) for sign in reversed(match[0]) if sign.isdigit()]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return match[0] if (sum(digits[::2]) + doubled) % 10 else CARD


# in this order: a part of an IBAN or of a card's number may look like a phone's
_TELLING: tuple[tuple[re.Pattern[str], _Kept], ...] = (
    (_ADDRESS, lambda _: E_MAIL), (_IBAN, _without_iban), (_CARD, _without_card), (_PHONE, lambda _: PHONE),
)


def _replaced(pattern: re.Pattern[str], kept: _Kept, raw: str) -> str:
    """`raw` without what the pattern finds in its ASCII spelling."""
    parts, at = [], 0
    for match in pattern.finditer("".join(map(_in_ascii, raw))):
        left, begin = kept(match), match.start()
        parts += [raw[at:begin], raw[begin : match.end()] if left == match[0] else left]
        at = match.end()
    return "".join([*parts, raw[at:]])


@cache
def _in_ascii(sign: str) -> str:
    """A digit of any script, a wide sign, a blank or a dash as the one sign that ASCII has for it."""
    if sign.isdecimal():
        return str(unicodedata.decimal(sign))
    if "！" <= sign <= "～":
        return chr(ord(sign) - ord("！") + ord("!"))
    if unicodedata.category(sign) == "Zs":
        return " "
    return "-" if sign in _DASHES else sign
