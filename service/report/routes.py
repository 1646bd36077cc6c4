"""HTTP operation of the report."""

from quart import Blueprint
from quart_rate_limiter import rate_limit

from service.http.call import Call
from service.http.documentation import document_status
from service.http.operations import Reply, operation
from service.http.priority import costly
from service.limits import named
from service.report.schemas import ReportOut
from service.report.service import Reports

report_bp = Blueprint("report", __name__, url_prefix="/api/report")


@report_bp.get("")
@rate_limit(limits=named("report"))
@operation
@document_status(200, ReportOut, "ETag")
@costly
async def report(call: Call) -> Reply:
    """Return totals of the catalogue, which are computed at most once an hour."""
    reports: Reports = call.extensions["reports"]
    return Reply(await reports.read(), is_public=True)
