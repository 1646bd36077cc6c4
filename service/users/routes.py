"""HTTP operations on users."""

from quart import Blueprint

from service.books import service as books
from service.books.schemas import BookArray, BookArrayQuery, BookFilters
from service.errors import InvalidInputError
from service.http.auth import USERS, CurrentUser, account_in, token_required
from service.http.call import Call
from service.http.documentation import document_status
from service.http.fields import select_fields
from service.http.operations import (
    Reply,
    cached_item,
    operation,
    validate_querystring,
    validate_request,
)
from service.http.pagination import CachedQuery, page_envelope
from service.http.priority import costly
from service.http.responses import cache_status, to_bytes
from service.http.urls import link_header
from service.limits.password_attempts import password_attempt
from service.users import service
from service.users.schemas import ProfileUpdate, PublicUser, UserOut

users_bp = Blueprint("users", __name__, url_prefix="/api")

FOLLOW_UPS = {"list_user_books": {"user_id": "$response.body#/id"}}


@users_bp.get("/profile")
@operation
@document_status(200, UserOut, "Cache-Status")
@token_required
@validate_querystring(CachedQuery)
async def get_profile(call: Call, query_args: CachedQuery, current_user: CurrentUser) -> Reply:
    """Return the caller's account, which was read to check the token."""
    if not query_args.nocache:
        return Reply(UserOut.model_validate(current_user))
    async with call.database.session() as db:
        user = await service.get_user(db, current_user.id)
    return Reply(UserOut.model_validate(user), cached="bypass")


@users_bp.patch("/profile")
@operation
@document_status(200, UserOut)
@token_required
@validate_request(ProfileUpdate)
async def update_profile(call: Call, data: ProfileUpdate, current_user: CurrentUser) -> Reply:
    """Change the caller's account. A new e-mail or password needs the current password.

    A taken name or e-mail is 400, with a message for its field.
    """
    checked_hash = None
    if data.needs_password:
        checked_hash = await _check_password(call, current_user, data)
    given = data.model_dump(exclude_unset=True)
    password = given.get("password")
    password_hash = None if password is None else await call.passwords.hash(password)
    user = await call.database.write(
        lambda db: service.update_profile(
            db,
            current_user,
            username=given.get("username"),
            email=given.get("email"),
            password_hash=password_hash,
            checked_hash=checked_hash,
        )
    )
    return Reply(UserOut.model_validate(user))


async def _check_password(call: Call, current_user: CurrentUser, data: ProfileUpdate) -> str:
    """Verify `current_password` and return its hash. Raises InvalidInputError, RateLimitedError."""
    if data.current_password is None:
        raise InvalidInputError({"current_password": ["Missing data for required field."]})
    async with call.database.session() as db:
        user = await service.get_user(db, current_user.id)
    async with password_attempt(call, user.email_key) as attempt:
        if not await attempt.verify(data.current_password, user.password_hash):
            raise service.wrong_password()
    return user.password_hash


def _public(account: bytes) -> bytes:
    return to_bytes(PublicUser.model_validate(account_in(account)))


@users_bp.get("/users/<id:user_id>")
@operation
@document_status(200, PublicUser, "ETag", "Cache-Status", links=FOLLOW_UPS)
@validate_querystring(CachedQuery)
@cached_item(USERS, service.not_found, _public)
async def get_user(call: Call, user_id: int, query_args: CachedQuery) -> Reply:
    """Return the public data of a user."""
    entry, status = await call.cache.items.read(USERS, user_id, bypass=query_args.nocache)
    if not entry.body:
        raise service.not_found(user_id, cache_status(call.scope, status))
    return Reply(_public(entry.body), is_public=True, cached=status)


@users_bp.get("/users/<id:user_id>/books")
@operation
@document_status(200, BookArray, "ETag", "Link", "X-Total-Count", "Cache-Status")
@validate_querystring(BookArrayQuery)
@costly
async def list_user_books(call: Call, user_id: int, query_args: BookArrayQuery) -> Reply:
    """List a user's books, newest first, as an array without an envelope (Flask guide)."""
    page = query_args.to_page()
    listing = books.list_books(BookFilters(user_id=user_id), "-created_at", page)
    rows = await call.cache.lists.read(listing, bypass=query_args.nocache)
    links = page_envelope(page, rows.total, call.url)["links"]
    headers = {**link_header(links), "X-Total-Count": str(rows.total)}
    body = b"[%b]" % b",".join(select_fields(rows.bodies, query_args.fields))
    return Reply.of_list(body, listing, rows, headers)
