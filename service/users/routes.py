"""Users over HTTP."""

from quart import Response
from quart_schema import validate_querystring, validate_request

from service.books import service as books
from service.books.schemas import BookArray, BookFilters
from service.cache import of_app as cache
from service.db import session, write
from service.errors import InvalidInputError
from service.guard import CurrentUser, token_required
from service.links import here, link_header
from service.openapi.answers import answers
from service.pagination import CachedPageQuery
from service.password_check import password_attempt
from service.precedence import costly
from service.security import passwords
from service.users import service, users_bp
from service.users.schemas import ProfileUpdate, PublicUser, UserOut
from service.web import respond, respond_public, to_bytes


@users_bp.get("/profile")
@answers(200, UserOut)
@token_required
async def get_profile(current_user: CurrentUser) -> Response:
    """Give one's own account."""
    async with session() as db:
        user = await service.get_user(db, current_user.id)
    return respond(to_bytes(UserOut.model_validate(user)))


@users_bp.patch("/profile")
@answers(200, UserOut)
@token_required
@validate_request(ProfileUpdate)
async def update_profile(data: ProfileUpdate, current_user: CurrentUser) -> Response:
    """Change one's own account; e-mail and password need the current password.

    A name or e-mail that is taken is 400, said by field.
    """
    checked_hash = await _check_password(current_user, data) if data.needs_password else None
    given = data.model_dump(exclude_unset=True)
    password = given.get("password")
    password_hash = None if password is None else await passwords().hash(password)
    user = await write(
        lambda db: service.update_profile(
            db,
            current_user,
            username=given.get("username"),
            email=given.get("email"),
            password_hash=password_hash,
            checked_hash=checked_hash,
        )
    )
    return respond(to_bytes(UserOut.model_validate(user)))


async def _check_password(current_user: CurrentUser, data: ProfileUpdate) -> str:
    """Give the hash that `current_password` fits. Raises InvalidInputError, RateLimitedError."""
    if data.current_password is None:
        raise InvalidInputError({"current_password": ["Missing data for required field."]})
    async with session() as db:
        user = await service.get_user(db, current_user.id)
    async with password_attempt(user.email_key) as attempt:
        if not await attempt.verify(data.current_password, user.password_hash):
            raise service.wrong_password()
    return user.password_hash


@users_bp.get("/users/<id:user_id>")
@answers(200, PublicUser, "ETag", links={"list_user_books": {"user_id": "$response.body#/id"}})
async def get_user(user_id: int) -> Response:
    """Give the public face of a user."""
    async with session() as db:
        user = await service.get_user(db, user_id)
    return respond_public(to_bytes(PublicUser.model_validate(user)))


@users_bp.get("/users/<id:user_id>/books")
@answers(200, BookArray, "ETag", "Link", "X-Total-Count", "Cache-Status")
@validate_querystring(CachedPageQuery)
@costly
async def list_user_books(user_id: int, query_args: CachedPageQuery) -> Response:
    """List a user's books, newest first, as a bare array (guide)."""
    page = query_args.to_page()
    listing = books.list_books(BookFilters(user_id=user_id), "-created_at", page)
    rows = await cache().lists.read(listing, past=query_args.nocache)
    links = page.envelope(rows.total, here())["links"]
    return respond_public(
        b"[%b]" % b",".join(rows.bodies),
        headers={**link_header(links), "X-Total-Count": str(rows.total)},
        cached=rows.status,
    )
