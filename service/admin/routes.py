"""Administration over HTTP."""

from quart import Response
from quart_schema import validate_querystring, validate_request

from service.admin import admin_bp, service
from service.admin.schemas import Message, RightsUpdate
from service.cache import FAILURES
from service.cache import of_app as cache
from service.db import session, write
from service.errors import ServiceUnavailableError
from service.guard import CurrentUser, admin_required
from service.links import here, link_header
from service.openapi.answers import answers, fails
from service.pagination import PageQuery
from service.precedence import costly
from service.users.schemas import UserOut, UserPage
from service.web import no_content, respond, to_bytes, with_items


@admin_bp.get("/users")
@answers(200, UserPage, "Link")
@admin_required
@validate_querystring(PageQuery)
@costly
async def list_users(query_args: PageQuery, current_user: CurrentUser) -> Response:
    """List users, newest first."""
    page = query_args.to_page()
    async with session() as db:
        found, total = await service.list_users(db, page)
    envelope = page.envelope(total, here())
    bodies = [to_bytes(UserOut.model_validate(user)) for user in found]
    return respond(with_items(bodies, envelope), headers=link_header(envelope["links"]))


@admin_bp.post("/clear-cache")
@answers(200, Message)
@admin_required
async def clear_cache(current_user: CurrentUser) -> Response:
    """Clear the cache of every worker, and nothing else: for whoever wants to see it work.

    Nothing in it is ever stale: no write needs this.
    """
    try:
        await cache().clear()
    except FAILURES:
        raise ServiceUnavailableError("The cache cannot be reached") from None
    return respond(to_bytes(Message(message="Cache cleared")))


@admin_bp.patch("/users/<id:user_id>")
@answers(200, UserOut)
@fails(409)
@admin_required
@validate_request(RightsUpdate)
async def update_user(user_id: int, data: RightsUpdate, current_user: CurrentUser) -> Response:
    """Change a user's tier or rights, which ends their tokens."""
    given = data.model_dump(exclude_unset=True)
    user = await write(
        lambda db: service.update_rights(
            db, current_user, user_id, tier=given.get("tier"), is_admin=given.get("is_admin")
        )
    )
    return respond(to_bytes(UserOut.model_validate(user)))


@admin_bp.delete("/users/<id:user_id>")
@answers(204)
@fails(409)
@admin_required
async def delete_user(user_id: int, current_user: CurrentUser) -> Response:
    """Delete a user with their books. The last administrator stays."""
    await write(lambda db: service.delete_user(db, current_user, user_id))
    return no_content()
