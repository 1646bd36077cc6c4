"""`octavo openapi`: print the document of the API, for client generators."""

import json

import click

from service.app import create_app
from service.config import load_from_environment
from service.openapi.pages import document


@click.command()
def openapi() -> None:
    """Print the OpenAPI document of the API, as JSON.

    Its server URL is PUBLIC_URL.
    """
    app = create_app(load_from_environment())
    click.echo(json.dumps(document(app).schema(), ensure_ascii=False, indent=2))
