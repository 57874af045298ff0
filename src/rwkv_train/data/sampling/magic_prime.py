"""The modulus of the sample permutation: a prime that leaves the remainder 2 when divided by 3.

The tokens are cut into `slots` = floor(tokens / ctx_len) pieces. For a prime p = 2 (mod 3), 3 and
p - 1 have no common divisor, so n -> n^3 mod p visits every number below p exactly once; that is
what makes RWKV-LM's sampling a permutation of the first p slots.
"""

from __future__ import annotations

from rwkv_train.errors import DataError

# Bases that make the Miller-Rabin test exact for every n below 3.3e24 (Sorenson and Webster 2015).
_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)


def is_prime(n: int) -> bool:
    """Tells whether n is prime; exact for n below 3.3e24, far beyond any token count."""
    if n < 2:
        return False
    for prime in _WITNESSES:
        # Needed below too: a witness that is a multiple of n would call it composite.
        if n % prime == 0:
            return n == prime
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(_passes_miller_rabin(n, base, odd, twos) for base in _WITNESSES)


def magic_prime(tokens: int, ctx_len: int) -> int:
    """Returns the largest prime p <= floor(tokens / ctx_len) - 1 with p mod 3 = 2.

    It is RWKV-LM's choice.  Raises DataError below three slots, where no such prime exists.
    """
    prime = _largest_usable(_slots(tokens, ctx_len) - 1)
    if prime is None:
        raise DataError(_too_small(tokens, ctx_len))
    return prime


def largest_ctx_len(tokens: int) -> int:
    """Returns the largest ctx_len for which `magic_prime` exists; 0 below three tokens."""
    return tokens // 3


def check_magic_prime(prime: int, tokens: int, ctx_len: int) -> None:
    """Raises DataError, with the right value, unless `prime` permutes nearly all of the data.

    It must be a prime, 2 mod 3, its last target token (number prime * ctx_len) must be inside the
    file, and it must reach more than 0.9 of the slots unless small data has no larger one.
    """
    slots = _slots(tokens, ctx_len)
    if not is_prime(prime):
        reason = "it is not a prime"
    elif prime % 3 != 2:
        reason = f"divided by 3 it leaves {prime % 3}, not 2, so that samples would repeat"
    # RWKV-LM also admits p = slots: one token past the end of a multiple of ctx_len tokens.
    elif prime * ctx_len >= tokens:
        reason = f"it addresses token {prime * ctx_len}, beyond the last one"
    # RWKV-LM's rule, p / slots > 0.9, in integers; its own choice breaks it on small data.
    elif 10 * prime <= 9 * slots and prime < (_largest_usable(slots - 1) or 0):
        reason = f"it would read only {prime} of {slots} slots"
    else:
        return
    right = _largest_usable(slots - 1)
    if right is None:
        raise DataError(_too_small(tokens, ctx_len))
    raise DataError(
        f"--magic_prime {prime} does not fit {tokens} tokens with --ctx_len {ctx_len}: {reason}; "
        f"the right value is {right} (without the flag it is computed)"
    )


def _slots(tokens: int, ctx_len: int) -> int:
    if ctx_len < 1:
        raise DataError(f"--ctx_len {ctx_len} is not possible; it must be at least 1")
    return tokens // ctx_len


def _largest_usable(limit: int) -> int | None:
    """Returns the largest prime p <= limit with p mod 3 = 2, None below 2."""
    # Steps of 3 keep the remainder 2; primes are dense enough for a few dozen tests at most.
    candidate = limit - (limit - 2) % 3
    while candidate >= 2 and not is_prime(candidate):
        candidate -= 3
    return candidate if candidate >= 2 else None


def _too_small(tokens: int, ctx_len: int) -> str:
    advice = f"--ctx_len {largest_ctx_len(tokens)} or less" if tokens >= 3 else "more text"
    return (
        f"the data holds {tokens} tokens, too few for --ctx_len {ctx_len}, which needs at least "
        f"{3 * ctx_len}; use {advice}"
    )


def _passes_miller_rabin(n: int, base: int, odd: int, twos: int) -> bool:
    """Tells whether n = odd * 2^twos + 1 looks prime to this base."""
    power = pow(base, odd, n)
    if power in (1, n - 1):
        return True
    for _ in range(twos - 1):
        power = power * power % n
        if power == n - 1:
            return True
    return False
