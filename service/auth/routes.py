"""HTTP operations of registration, sign-in, token refresh and sign-out."""

from quart import Blueprint
from quart_rate_limiter import rate_limit

from service.auth import service
from service.auth.schemas import Credentials, Refresh, Registration, TokenPair
from service.errors import UnauthorizedError
from service.http.auth import CurrentUser, token_required
from service.http.call import Call
from service.http.compression import secret_response
from service.http.documentation import document_status
from service.http.operations import Reply, operation, validate_request
from service.limits import named
from service.limits.password_attempts import password_attempt
from service.users import service as users
from service.users.schemas import UserOut

auth_bp = Blueprint("auth", __name__, url_prefix="/api/auth")


@auth_bp.post("/register")
@rate_limit(limits=named("register"))
@operation
@document_status(201, UserOut, links={"get_user": {"user_id": "$response.body#/id"}})
@validate_request(Registration)
async def register(call: Call, data: Registration) -> Reply:
    """Create an account. A taken name or e-mail is 400, with a message for its field."""
    password_hash = await call.passwords.hash(data.password)
    user = await call.database.write(
        lambda db: users.create_user(db, data.username, data.email, password_hash)
    )
    return Reply(UserOut.model_validate(user), 201)


@auth_bp.post("/login")
@rate_limit(limits=named("login"))
@operation
@document_status(200, TokenPair)
@secret_response
@validate_request(Credentials)
async def login(call: Call, data: Credentials) -> Reply:
    """Exchange e-mail and password for a pair of tokens. An unknown e-mail takes as long."""
    async with password_attempt(call, users.email_key(data.email)) as attempt:
        async with call.database.session() as db:
            credentials = await users.find_credentials(db, data.email)
        is_right = await attempt.verify(data.password, credentials and credentials[1])
        pair = None
        if is_right and credentials is not None:
            pair = await _sign_in(call, data.password, *credentials)
    if pair is None:
        raise UnauthorizedError("Invalid credentials", "E-mail or password is wrong")
    return Reply(pair)


async def _sign_in(call: Call, password: str, user_id: int, checked_hash: str) -> TokenPair | None:
    """Return a pair of tokens, or None if the password has changed since it was verified."""
    is_outdated = call.passwords.is_outdated(checked_hash)
    new_hash = await call.passwords.hash(password) if is_outdated else None
    seconds = call.settings.refresh_token_seconds
    return await call.database.write(
        lambda db: service.login(db, user_id, checked_hash, new_hash, call.tokens, seconds)
    )


@auth_bp.post("/refresh")
@operation
@document_status(200, TokenPair)
@secret_response
@validate_request(Refresh)
async def refresh(call: Call, data: Refresh) -> Reply:
    """Exchange a refresh token for a new pair of tokens, once."""
    seconds = call.settings.refresh_token_seconds
    pair = await call.database.write(
        lambda db: service.refresh(db, data.refresh_token, call.tokens, seconds)
    )
    if pair is None:
        raise UnauthorizedError
    return Reply(pair)


@auth_bp.post("/logout")
@operation
@document_status(204)
@token_required
async def logout(call: Call, current_user: CurrentUser) -> Reply:
    """End every token of the caller."""
    await call.database.write(lambda db: service.logout(db, current_user))
    return Reply(status=204)
