"""Signing in and out over HTTP."""

from quart import Response, current_app
from quart_rate_limiter import rate_limit
from quart_schema import validate_request

from service.auth import auth_bp, service
from service.auth.schemas import Credentials, Refresh, Registration, TokenPair
from service.db import session, write
from service.errors import UnauthorizedError
from service.guard import CurrentUser, token_required
from service.limits import named
from service.openapi.answers import answers
from service.password_check import password_attempt
from service.security import passwords, tokens
from service.users import service as users
from service.users.schemas import UserOut
from service.web import no_content, respond, to_bytes


@auth_bp.post("/register")
@answers(201, UserOut, links={"get_user": {"user_id": "$response.body#/id"}})
@rate_limit(limits=named("register"))
@validate_request(Registration)
async def register(data: Registration) -> Response:
    """Make an account. A name or e-mail that is taken is 400, said by field."""
    password_hash = await passwords().hash(data.password)
    user = await write(lambda db: users.create_user(db, data.username, data.email, password_hash))
    return respond(to_bytes(UserOut.model_validate(user)), 201)


@auth_bp.post("/login")
@answers(200, TokenPair)
@rate_limit(limits=named("login"))
@validate_request(Credentials)
async def login(data: Credentials) -> Response:
    """Exchange e-mail and password for a pair of tokens; the same time whoever it is."""
    async with password_attempt(users.email_key(data.email)) as attempt:
        async with session() as db:
            user = await users.find_by_email(db, data.email)
        checked_hash = user.password_hash if user else None
        is_right = await attempt.verify(data.password, checked_hash)
        pair = None
        if is_right and user is not None and checked_hash is not None:
            pair = await _sign_in(user.id, data.password, checked_hash)
    if pair is None:
        raise UnauthorizedError("Invalid credentials", "E-mail or password is wrong")
    return respond(to_bytes(pair))


async def _sign_in(user_id: int, password: str, checked_hash: str) -> TokenPair | None:
    """Give a pair of tokens, unless the password that was right has changed since."""
    is_outdated = passwords().is_outdated(checked_hash)
    new_hash = await passwords().hash(password) if is_outdated else None
    seconds = _refresh_seconds()
    return await write(
        lambda db: service.login(db, user_id, checked_hash, new_hash, tokens(), seconds)
    )


@auth_bp.post("/refresh")
@answers(200, TokenPair)
@validate_request(Refresh)
async def refresh(data: Refresh) -> Response:
    """Exchange a refresh token for a new pair of tokens, once."""
    seconds = _refresh_seconds()
    pair = await write(lambda db: service.refresh(db, data.refresh_token, tokens(), seconds))
    if pair is None:
        raise UnauthorizedError
    return respond(to_bytes(pair))


@auth_bp.post("/logout")
@answers(204)
@token_required
async def logout(current_user: CurrentUser) -> Response:
    """End every token of the caller."""
    await write(lambda db: service.logout(db, current_user))
    return no_content()


def _refresh_seconds() -> int:
    seconds: int = current_app.extensions["settings"].refresh_token_seconds
    return seconds
