"""GET /docs: the API, to read and to try. Its page, script and style come from here and from nowhere else."""

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>ssfserve</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
START = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  validatorUrl: null,
});
"""
# Swagger UI sets styles on elements, and draws its icons from data: URLs
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
KEEP = {"cache-control": "public, max-age=86400"}

router = APIRouter(prefix="/docs", include_in_schema=False)


@router.get("")
async def page() -> Response:
    return Response(PAGE, headers={"content-security-policy": POLICY}, media_type="text/html")


@router.get("/start.js")
async def start() -> Response:
    return Response(START, headers=KEEP, media_type="text/javascript")


@router.get("/swagger-ui-bundle.js")
async def script() -> Response:
    return FileResponse(asset("swagger-ui-bundle.js"), headers=KEEP, media_type="text/javascript")


@router.get("/swagger-ui.css")
async def style() -> Response:
    return FileResponse(asset("swagger-ui.css"), headers=KEEP, media_type="text/css")


def asset(name: str) -> Path:
    """Return a file of Swagger UI as the package `fastapi-offline` holds it; its code is not run."""
    found = find_spec("fastapi_offline")
    assert found, "a dependency of the server"
    assert found.origin
    return Path(found.origin).with_name("static") / name
