"""Examples of additions to Octavo, as docs/extending.md describes them."""
