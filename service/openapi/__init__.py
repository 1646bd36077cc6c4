"""The OpenAPI document (`/openapi.json`) and its page (`/docs`).

`document` builds the document from the declarations of the routes, `pages` serves it, `headers`
describes the headers.
"""

from service.openapi.pages import init_app

__all__ = ["init_app"]
