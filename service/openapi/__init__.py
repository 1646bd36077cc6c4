"""The document of the API, `/openapi.json` and `/docs`: what routes say they answer, in one place.

`answers` stands on a route, `document` makes the document, `pages` serves it.
"""

from service.openapi.pages import init_app
