"""The OpenAPI document (`/openapi.json`) and its page (`/docs`).

`answers` declares the responses of a route, `document` builds the document, `pages` serves it.
"""

from service.openapi.pages import init_app
