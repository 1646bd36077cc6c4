"""HTTP operations for administrators."""

from quart import Blueprint

from service.admin import service
from service.admin.schemas import Message, RightsUpdate
from service.cache import FAILURES
from service.errors import ServiceUnavailableError
from service.http.auth import CurrentUser, admin_required
from service.http.call import Call
from service.http.documentation import document_errors, document_status
from service.http.operations import Reply, operation, validate_querystring, validate_request
from service.http.pagination import PageQuery, page_envelope
from service.http.priority import costly
from service.http.responses import to_bytes, with_items
from service.http.urls import link_header
from service.users.schemas import UserOut, UserPage

admin_bp = Blueprint("admin", __name__, url_prefix="/admin")


@admin_bp.get("/users")
@operation
@document_status(200, UserPage, "Link")
@admin_required
@validate_querystring(PageQuery)
@costly
async def list_users(call: Call, query_args: PageQuery, current_user: CurrentUser) -> Reply:
    """List users, newest first."""
    page = query_args.to_page()
    async with call.database.session() as db:
        users, total = await service.list_users(db, page)
    envelope = page_envelope(page, total, call.url)
    bodies = [to_bytes(UserOut.model_validate(user)) for user in users]
    return Reply(with_items(bodies, envelope), headers=link_header(envelope["links"]))


@admin_bp.post("/clear-cache")
@operation
@document_status(200, Message)
@admin_required
async def clear_cache(call: Call, current_user: CurrentUser) -> Reply:
    """Clear the cache of every worker, and nothing else in Redis.

    Normal operation never needs this: cached data are never stale.
    """
    try:
        await call.cache.clear()
    except FAILURES:
        raise ServiceUnavailableError("The cache cannot be reached") from None
    return Reply(Message(message="Cache cleared"))


@admin_bp.patch("/users/<id:user_id>")
@operation
@document_status(200, UserOut)
@document_errors(409)
@admin_required
@validate_request(RightsUpdate)
async def update_user(
    call: Call, user_id: int, data: RightsUpdate, current_user: CurrentUser
) -> Reply:
    """Change a user's tier or rights. A change ends the user's access tokens."""
    given = data.model_dump(exclude_unset=True)
    user = await call.database.write(
        lambda db: service.update_rights(
            db, current_user, user_id, tier=given.get("tier"), is_admin=given.get("is_admin")
        )
    )
    return Reply(UserOut.model_validate(user))


@admin_bp.delete("/users/<id:user_id>")
@operation
@document_status(204)
@document_errors(409)
@admin_required
async def delete_user(call: Call, user_id: int, current_user: CurrentUser) -> Reply:
    """Delete a user and the user's books. The last administrator cannot be deleted."""
    await call.database.write(lambda db: service.delete_user(db, current_user, user_id))
    return Reply(status=204)
