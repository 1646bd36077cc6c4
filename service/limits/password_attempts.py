"""The one place where a password is verified: wrong ones count, whatever asks for a password."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.http.call import Call
from service.limits import FAILURES
from service.security import Passwords, digest


class PasswordAttempt:
    """A guess at the password of an account."""

    is_wrong = False

    def __init__(self, passwords: Passwords) -> None:
        self._passwords = passwords

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Tell whether a password is right. None (no such user) takes as long, and is not."""
        is_right = await self._passwords.verify(password, password_hash)
        self.is_wrong = not is_right
        return is_right


@asynccontextmanager
async def password_attempt(call: Call, email_key: str) -> AsyncIterator[PasswordAttempt]:
    """Count a guess at the password of the account with this address. Raises RateLimitedError.

    The limit is of the account from the address of the caller. A guess counts as wrong before it
    is hashed, so that many at once are no way round. What was right, or could not be verified, is
    given back.
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
