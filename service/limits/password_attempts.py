"""Verify passwords under the limit of wrong passwords. All routes verify passwords only here."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.http.call import Call
from service.limits import FAILURES
from service.security import Passwords, digest


class PasswordAttempt:
    """An attempt to prove the password of an account."""

    is_wrong = False

    def __init__(self, passwords: Passwords) -> None:
        self._passwords = passwords

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Return whether a password is right. A hash of None (no user) takes as long: False."""
        is_right = await self._passwords.verify(password, password_hash)
        self.is_wrong = not is_right
        return is_right


@asynccontextmanager
async def password_attempt(call: Call, email_key: str) -> AsyncIterator[PasswordAttempt]:
    """Charge an attempt at the password of an account. Raises RateLimitedError.

    email_key: the account's e-mail address in the form for comparison. The limit is for the account
    and the caller's network address together. The attempt is charged before the password is
    verified, so that simultaneous attempts cannot exceed the limit. The unit is refunded if the
    password is right, or could not be verified.
    """
    limiter = call.limiter
    caller = limiter.identities.read(call.scope).caller
    charge = limiter.charge(FAILURES, caller, account=digest(email_key))
    decision = await limiter.acquire(call.scope, [charge])
    attempt = PasswordAttempt(call.passwords)
    try:
        yield attempt
    finally:
        if not attempt.is_wrong:
            await limiter.refund([charge], decision)
