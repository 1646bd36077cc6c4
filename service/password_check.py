"""The one place where a password is verified: wrong ones count, whatever asks for a password."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from quart import request

from service.limits import FAILURES, of_app
from service.security import digest, passwords


class PasswordAttempt:
    """A guess at the password of an account."""

    is_wrong = False

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Tell whether a password is right. None (no such user) takes as long, and is not."""
        is_right = await passwords().verify(password, password_hash)
        self.is_wrong = not is_right
        return is_right


@asynccontextmanager
async def password_attempt(email_key: str) -> AsyncIterator[PasswordAttempt]:
    """Count a guess at the password of the account with this address. Raises RateLimitedError.

    The limit is of the account from the address of the caller. A guess counts as wrong before it
    is hashed, so that many at once are no way round. What was right, or could not be verified, is
    given back.
    """
    limiter = of_app()
    charge = limiter.claim(FAILURES, limiter.caller(), account=digest(email_key))
    decision = await limiter.decide(request.scope, [charge])
    attempt = PasswordAttempt()
    try:
        yield attempt
    finally:
        if not attempt.is_wrong:
            await limiter.give_back([charge], decision)
